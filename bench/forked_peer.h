#pragma once

#include <sys/types.h>

#include <functional>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::bench {

// A child process that runs `body` and talks with this one over sockets. Started before this
// process has threads or CUDA. A child inherits the sockets of those before it: the last one made
// dies first.
class ForkedPeer {
 public:
  // body: gets the child's end of a socket, returns the child's exit code; it ends when the other
  // end is closed. With several sockets it runs once for each, at once, on threads of one child.
  explicit ForkedPeer(const std::function<absl::StatusOr<int>(int fd)>& body, int sockets = 1);
  // Closes the sockets and waits for the child.
  ~ForkedPeer();
  ForkedPeer(const ForkedPeer&) = delete;
  ForkedPeer& operator=(const ForkedPeer&) = delete;

  int fd(int socket = 0) const { return fds_[socket]; }

 private:
  pid_t pid_ = 0;
  std::vector<int> fds_;
};

}  // namespace kvferry::bench
