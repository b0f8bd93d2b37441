#include "bench/forked_peer.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <iostream>

namespace kvferry::bench {

ForkedPeer::ForkedPeer(const std::function<absl::StatusOr<int>(int fd)>& body) {
  std::array<int, 2> sockets{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) std::abort();
  pid_ = fork();
  if (pid_ == 0) {
    close(sockets[0]);
    const absl::StatusOr<int> code = body(sockets[1]);
    if (!code.ok()) std::cerr << code.status() << '\n';
    _exit(code.value_or(1));
  }
  close(sockets[1]);
  fd_ = sockets[0];
}

ForkedPeer::~ForkedPeer() {
  close(fd_);
  waitpid(pid_, nullptr, 0);
}

}  // namespace kvferry::bench
