#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/child_process.h"

namespace kvferry::testing {

// Several hosts on one machine: a network namespace for each, joined by a bridge in the test's own
// namespace. Everything is bound to processes of this test, so nothing is left when it ends or
// dies. Needs root (CAP_NET_ADMIN).
class TestNetwork {
 public:
  // Moves the calling process into a fresh network namespace and makes the bridge 10.77.0.1 in it.
  // kPermissionDenied without root.
  static absl::StatusOr<std::unique_ptr<TestNetwork>> Create(const std::string& folder);

  // A new host; its address is Address(host).
  absl::Status AddHost(const std::string& host);
  std::string Address(const std::string& host) const;
  // The command that runs `command` on the host, as the same process id.
  std::vector<std::string> OnHost(const std::string& host, std::vector<std::string> command) const;
  // Runs `work` in a thread of its own, which is on the host, as are the threads that it starts.
  absl::Status RunOnHost(const std::string& host, const std::function<void()>& work) const;
  // Cuts the host's cable, or plugs it in again.
  absl::Status SetLink(const std::string& host, bool up);
  // Limits what leaves and enters the host (tc tbf).
  absl::Status ShapeLink(const std::string& host, int megabits_per_s);

 private:
  struct Host {
    std::string name;
    std::string link;  // its end of the cable on the bridge
    std::string address;
    std::unique_ptr<cli::ChildProcess> holder;  // keeps the namespace
  };
  explicit TestNetwork(std::string folder) : folder_(std::move(folder)) {}
  const Host& Find(const std::string& host) const;

  std::string folder_;
  std::vector<Host> hosts_;
};

// Runs a command and waits for it; kInternal with its output when it fails.
absl::Status RunCommand(const std::vector<std::string>& command);

}  // namespace kvferry::testing
