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

// One peer, with two connections to it: behind the payloads of the one a heartbeat would wait for
// as long as these take. Thread: progress thread only.
struct UcxPeer {
  PeerHandle handle{};
  std::string name;
  std::uint64_t incarnation = 0;
  // Null once the close has been posted.
  ucp_ep_h endpoint = nullptr;    // of all messages but heartbeats
  ucp_ep_h heartbeats = nullptr;  // and of these
  MonoTime last_heard;
  absl::Status lost;  // why it is being closed; OK while it is not
  bool closing = false;
  int open_closes = 0;  // close requests that UCX has not completed
  int sends = 0;        // requests that UCX has not completed
  int receives = 0;

  bool idle() const { return sends == 0 && receives == 0 && open_closes == 0; }
};

}  // namespace kvferry::transport
