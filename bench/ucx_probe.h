#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

// UCX Active Messages between two processes and nothing else: no headers of ours, no threads, no
// checksums but on request; each message is answered by an empty one. Both sides poll. In error
// mode PEER, as transport/ucx.
namespace kvferry::bench {

struct UcxProbeOptions {
  std::map<std::string, std::string> settings;  // without the UCX_ prefix
  std::size_t message_bytes = 0;
  int window = 0;
  // The checksum that the sender sends along and the receiver compares; empty: none.
  std::function<std::uint32_t(std::span<const std::byte>)> check = {};
};

// The receiving process: `memory` has room for `window` messages. Until the other end of the socket
// `fd` is closed. Returns its exit code.
int ReceiveProbe(int fd, const UcxProbeOptions& options, std::span<std::byte> memory);

class UcxProbe {
 public:
  static absl::StatusOr<std::unique_ptr<UcxProbe>> Create(int fd, const UcxProbeOptions& options,
                                                          std::span<std::byte> memory);
  virtual ~UcxProbe() = default;
  // GB/s from the first send to the last answer.
  virtual absl::StatusOr<double> Round(int messages) = 0;
};

}  // namespace kvferry::bench
