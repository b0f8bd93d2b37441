#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvferry::cli {

// A program that this one started. Its stderr goes to a log file, its stdout is read for the line
// that says it is ready. Dies with its parent (PR_SET_PDEATHSIG); the destructor kills and reaps
// what still runs. Thread: one at a time.
class ChildProcess {
 public:
  // kNotFound: no such program. The child is the leader of no group: Ctrl-C reaches it through
  // Terminate only.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::vector<std::string>& command, const std::string& log_file);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Waits for a stdout line that contains "key=" and returns the value. kDeadlineExceeded; kAborted
  // with the end of the log when the child ends first.
  absl::StatusOr<std::string> WaitForValue(const std::string& key, absl::Duration timeout);
  // True while the child runs.
  bool Running();
  void Terminate();                   // SIGTERM
  void Wait(absl::Duration timeout);  // then SIGKILL
  pid_t pid() const { return pid_; }

 private:
  ChildProcess(pid_t pid, int stdout_fd, std::string log_file);
  std::string LogTail() const;

  pid_t pid_;
  int stdout_fd_;
  bool reaped_ = false;
  std::string log_file_;
  std::string pending_;
};

}  // namespace kvferry::cli
