#include "bench/forked_peer.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <future>
#include <iostream>

namespace kvferry::bench {
namespace {

int RunBody(const std::function<absl::StatusOr<int>(int fd)>& body, int fd) {
  const absl::StatusOr<int> code = body(fd);
  if (!code.ok()) std::cerr << code.status() << '\n';
  return code.value_or(1);
}

}  // namespace

ForkedPeer::ForkedPeer(const std::function<absl::StatusOr<int>(int fd)>& body, int sockets) {
  std::vector<int> theirs;
  for (int i = 0; i < sockets; ++i) {
    std::array<int, 2> pair{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) std::abort();
    fds_.push_back(pair[0]);
    theirs.push_back(pair[1]);
  }
  pid_ = fork();
  if (pid_ == 0) {
    for (const int fd : fds_) close(fd);
    std::vector<std::future<int>> running;
    running.reserve(theirs.size());
    for (const int fd : theirs) {
      running.push_back(std::async(std::launch::async, [&body, fd] { return RunBody(body, fd); }));
    }
    int code = 0;
    for (std::future<int>& one : running) code = std::max(code, one.get());
    _exit(code);
  }
  for (const int fd : theirs) close(fd);
}

ForkedPeer::~ForkedPeer() {
  for (const int fd : fds_) close(fd);
  waitpid(pid_, nullptr, 0);
}

}  // namespace kvferry::bench
