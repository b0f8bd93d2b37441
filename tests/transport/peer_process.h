#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::transport {

inline constexpr std::uint64_t kPeerIncarnation = 0xbbbb;
inline constexpr std::uint64_t kTestIncarnation = 0xaaaa;

// Where a peer runs.
struct PeerPlace {
  std::optional<int> gpu = std::nullopt;  // its payloads lie there
  std::vector<std::string> on_host = {};  // what runs a command there, before it; empty: here
};

// transport_peer as a child process: a UCX transport that does what its role says until its
// standard input ends. Thread: the test's.
//   "answer": lands every payload and answers with a kAck whose header is its CRC32C as text.
//   "flood":  sends chunks of 8 MiB without end.
class PeerProcess {
 public:
  // `address` is the test's own transport's.
  static absl::StatusOr<std::unique_ptr<PeerProcess>> Start(const std::string& role,
                                                            const std::string& address,
                                                            const PeerPlace& place = {});
  ~PeerProcess();  // kills it

  const std::string& address() const { return address_; }
  void Signal(int signal) const;

 private:
  PeerProcess(int pid, int to_child) : pid_(pid), to_child_(to_child) {}

  int pid_;
  int to_child_;
  std::string address_;
};

}  // namespace kvferry::transport
