#include "tests/integration/test_network.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace kvferry::testing {

absl::Status RunCommand(const std::vector<std::string>& command) {
  const std::string line = absl::StrCat(absl::StrJoin(command, " "), " 2>&1");
  FILE* pipe = popen(line.c_str(), "r");
  if (pipe == nullptr) return absl::InternalError(absl::StrCat("cannot run: ", line));
  std::string output;
  char buffer[512];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  const int code = pclose(pipe);
  if (code != 0)
    return absl::InternalError(absl::StrCat("'", line, "' ended with ", code, ": ", output));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TestNetwork>> TestNetwork::Create(const std::string& folder) {
  if (unshare(CLONE_NEWNET) != 0) {
    return absl::PermissionDeniedError("unshare(CLONE_NEWNET) is refused: this test needs root");
  }
  KVF_RETURN_IF_ERROR(RunCommand({"ip", "link", "set", "lo", "up"}));
  KVF_RETURN_IF_ERROR(RunCommand({"ip", "link", "add", "bridge0", "type", "bridge"}));
  KVF_RETURN_IF_ERROR(RunCommand({"ip", "addr", "add", "10.77.0.1/24", "dev", "bridge0"}));
  KVF_RETURN_IF_ERROR(RunCommand({"ip", "link", "set", "bridge0", "up"}));
  return std::unique_ptr<TestNetwork>(new TestNetwork(folder));
}

absl::Status TestNetwork::AddHost(const std::string& host) {
  Host added{.name = host,
             .link = absl::StrCat("port", hosts_.size()),
             .address = absl::StrCat("10.77.0.", hosts_.size() + 2)};
  KVF_ASSIGN_OR_RETURN(added.holder,
                       cli::ChildProcess::Start({"/usr/bin/unshare", "--net", "/bin/sh", "-c",
                                                 "echo ready=1; exec sleep 3600"},
                                                absl::StrCat(folder_, "/host-", host, ".log")));
  KVF_RETURN_IF_ERROR(added.holder->WaitForValue("ready", absl::Seconds(10)).status());
  const std::string pid = absl::StrCat(added.holder->pid());
  const std::string net = absl::StrCat("--net=/proc/", pid, "/ns/net");
  KVF_RETURN_IF_ERROR(RunCommand(
      {"ip", "link", "add", added.link, "type", "veth", "peer", "name", "eth0", "netns", pid}));
  KVF_RETURN_IF_ERROR(RunCommand({"ip", "link", "set", added.link, "master", "bridge0", "up"}));
  KVF_RETURN_IF_ERROR(RunCommand({"nsenter", net, "ip", "link", "set", "lo", "up"}));
  KVF_RETURN_IF_ERROR(
      RunCommand({"nsenter", net, "ip", "addr", "add", added.address + "/24", "dev", "eth0"}));
  KVF_RETURN_IF_ERROR(RunCommand({"nsenter", net, "ip", "link", "set", "eth0", "up"}));
  hosts_.push_back(std::move(added));
  return absl::OkStatus();
}

const TestNetwork::Host& TestNetwork::Find(const std::string& host) const {
  for (const Host& candidate : hosts_) {
    if (candidate.name == host) return candidate;
  }
  std::cerr << "no host '" << host << "' in the test network\n";
  std::abort();
}

std::string TestNetwork::Address(const std::string& host) const { return Find(host).address; }

std::vector<std::string> TestNetwork::OnHost(const std::string& host,
                                             std::vector<std::string> command) const {
  std::vector<std::string> inside = {
      "/usr/bin/nsenter", absl::StrCat("--net=/proc/", Find(host).holder->pid(), "/ns/net"), "--"};
  inside.insert(inside.end(), command.begin(), command.end());
  return inside;
}

absl::Status TestNetwork::RunOnHost(const std::string& host,
                                    const std::function<void()>& work) const {
  const std::string path = absl::StrCat("/proc/", Find(host).holder->pid(), "/ns/net");
  absl::Status status;
  std::thread([&] {
    const int net = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (net < 0 || setns(net, CLONE_NEWNET) != 0)
      status = absl::ErrnoToStatus(errno, absl::StrCat("enter ", path));
    if (net >= 0) close(net);
    if (status.ok()) work();
  }).join();
  return status;
}

absl::Status TestNetwork::SetLink(const std::string& host, bool up) {
  return RunCommand({"ip", "link", "set", Find(host).link, up ? "up" : "down"});
}

absl::Status TestNetwork::ShapeLink(const std::string& host, int megabits_per_s) {
  const std::string rate = absl::StrCat(megabits_per_s, "mbit");
  const std::string net = absl::StrCat("--net=/proc/", Find(host).holder->pid(), "/ns/net");
  KVF_RETURN_IF_ERROR(RunCommand({"tc", "qdisc", "replace", "dev", Find(host).link, "root", "tbf",
                                  "rate", rate, "burst", "64kb", "latency", "400ms"}));
  return RunCommand({"nsenter", net, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate",
                     rate, "burst", "64kb", "latency", "400ms"});
}

}  // namespace kvferry::testing
