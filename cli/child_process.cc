#include "cli/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace kvferry::cli {
namespace {

constexpr std::size_t kLogTailBytes = 2000;

[[noreturn]] void RunChild(const std::vector<std::string>& command, int stdout_fd, int log_fd,
                           pid_t parent) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  dup2(stdout_fd, STDOUT_FILENO);
  dup2(log_fd, STDERR_FILENO);
  execv(argv[0], argv.data());
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::vector<std::string>& command, const std::string& log_file) {
  if (access(command.at(0).c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("no program '", command[0],
                                            "': build it first, or install it beside kvferry"));
  }
  const int log_fd = open(log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log_fd < 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write the log '", log_file, "'"));
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    const int error = errno;
    close(log_fd);
    return absl::ErrnoToStatus(error, "pipe");
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) RunChild(command, pipe_fds[1], log_fd, parent);
  const int error = errno;
  close(log_fd);
  close(pipe_fds[1]);
  if (pid < 0) {
    close(pipe_fds[0]);
    return absl::ErrnoToStatus(error, "fork");
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, pipe_fds[0], log_file));
}

ChildProcess::ChildProcess(pid_t pid, int stdout_fd, std::string log_file)
    : pid_(pid), stdout_fd_(stdout_fd), log_file_(std::move(log_file)) {}

ChildProcess::~ChildProcess() {
  Wait(absl::ZeroDuration());
  close(stdout_fd_);
}

std::string ChildProcess::LogTail() const {
  std::ifstream file(log_file_, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  return text.size() > kLogTailBytes ? text.substr(text.size() - kLogTailBytes) : text;
}

absl::StatusOr<std::string> ChildProcess::WaitForValue(const std::string& key,
                                                       absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const std::string marker = key + "=";
  while (true) {
    for (std::size_t end = pending_.find('\n'); end != std::string::npos;
         end = pending_.find('\n')) {
      const std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      if (const std::size_t at = line.find(marker); at != std::string::npos) {
        const std::size_t begin = at + marker.size();
        return line.substr(begin, line.find(' ', begin) - begin);
      }
    }
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " did not say '", marker,
                                                      "' in ", absl::FormatDuration(timeout),
                                                      "; its log is ", log_file_));
    }
    pollfd poll_fd{stdout_fd_, POLLIN, 0};
    if (poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(stdout_fd_, buffer, sizeof(buffer));
    if (n > 0) {
      pending_.append(buffer, static_cast<std::size_t>(n));
    } else if (n == 0 || errno != EINTR) {
      return absl::AbortedError(absl::StrCat("process ", pid_,
                                             " ended before it was ready; the end of ", log_file_,
                                             ":\n", LogTail()));
    }
  }
}

bool ChildProcess::Running() {
  if (!reaped_ && waitpid(pid_, nullptr, WNOHANG) == pid_) reaped_ = true;
  return !reaped_;
}

void ChildProcess::Terminate() {
  if (Running()) kill(pid_, SIGTERM);
}

void ChildProcess::Wait(absl::Duration timeout) {
  if (!Running()) return;
  const int pid_fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  if (pid_fd >= 0) {
    pollfd poll_fd{pid_fd, POLLIN, 0};
    poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
    close(pid_fd);
  }
  if (!Running()) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  reaped_ = true;
}

}  // namespace kvferry::cli
