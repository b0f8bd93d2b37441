#pragma once

#include <sys/types.h>

#include <functional>

#include "absl/status/statusor.h"

namespace kvferry::bench {

// A child process that runs `body` and talks with this one over a socket. Started before this
// process has threads or CUDA. A child inherits the sockets of those before it: the last one made
// dies first.
class ForkedPeer {
 public:
  // body: gets the child's end of the socket, returns the child's exit code; it ends when the other
  // end is closed.
  explicit ForkedPeer(const std::function<absl::StatusOr<int>(int fd)>& body);
  // Closes the socket and waits for the child.
  ~ForkedPeer();
  ForkedPeer(const ForkedPeer&) = delete;
  ForkedPeer& operator=(const ForkedPeer&) = delete;

  int fd() const { return fd_; }

 private:
  pid_t pid_ = 0;
  int fd_ = -1;
};

}  // namespace kvferry::bench
