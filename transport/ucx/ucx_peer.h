#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <string>
#include <unordered_set>

#include "absl/status/status.h"
#include "common/clock.h"
#include "transport/transport.h"

namespace kvferry::transport {

// Our own header in front of every Active Message's header: who sends. 16 bytes, little-endian.
struct SenderPrefix {
  std::uint32_t magic;     // "KVFS"
  std::uint32_t reserved;  // zero
  std::uint64_t incarnation;
};
static_assert(sizeof(SenderPrefix) == 16);
inline constexpr std::uint32_t kSenderMagic = 0x5346564b;

// One connection. Thread: progress thread only.
struct UcxPeer {
  PeerHandle handle{};
  std::string name;
  std::uint64_t incarnation = 0;
  ucp_ep_h endpoint = nullptr;  // null once the close has been posted
  MonoTime last_heard;
  absl::Status lost;  // why it is being closed; OK while it is not
  bool closing = false;
  bool closed = false;  // the close request has completed
  int sends = 0;        // requests that UCX has not completed
  int receives = 0;

  bool idle() const { return sends == 0 && receives == 0 && closed; }
};

}  // namespace kvferry::transport
