#include "tests/transport/peer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::transport {
namespace {

// One line of the child's standard output.
absl::StatusOr<std::string> ReadLine(int fd) {
  std::string line;
  while (true) {
    pollfd waiting{fd, POLLIN, 0};
    if (poll(&waiting, 1, static_cast<int>(absl::ToInt64Milliseconds(fakes::kWaitLimit))) != 1)
      return absl::DeadlineExceededError("transport_peer has not said its address");
    char c = 0;
    if (read(fd, &c, 1) != 1) return absl::InternalError("transport_peer has ended early");
    if (c == '\n') return line;
    line += c;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeerProcess>> PeerProcess::Start(const std::string& role,
                                                                const std::string& address,
                                                                const PeerPlace& place) {
  std::array<int, 2> in{}, out{};
  if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0)
    return absl::ErrnoToStatus(errno, "pipe");
  const std::string program =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "transport_peer").string();
  std::vector<std::string> command = place.on_host;
  command.insert(command.end(), {program, role, absl::BytesToHexString(address)});
  if (place.gpu.has_value()) command.push_back(absl::StrCat(*place.gpu));
  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv.front(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  if (error != 0) {
    close(in[1]);
    close(out[0]);
    return absl::ErrnoToStatus(error, absl::StrCat("start ", command.front()));
  }
  std::unique_ptr<PeerProcess> peer(new PeerProcess(pid, in[1]));
  absl::StatusOr<std::string> line = ReadLine(out[0]);
  close(out[0]);
  if (!line.ok()) return line.status();
  peer->address_ = absl::HexStringToBytes(*line);
  return peer;
}

PeerProcess::~PeerProcess() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(to_child_);
}

void PeerProcess::Signal(int signal) const { kill(pid_, signal); }

}  // namespace kvferry::transport
