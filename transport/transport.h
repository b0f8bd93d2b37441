#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

// Moves messages with optional payload between two processes (docs/protocol.md, data plane). What
// the messages mean, credits, resends and epochs included, is above: prefill_node/block_sender,
// decode_node/block_receiver.
namespace kvferry::transport {

// Active Message ids on the wire.
enum class MessageType : std::uint8_t {
  kChunk = 1,
  kAck = 2,
  kNack = 3,
  kCommit = 4,
  kAdopted = 5,
  kHeartbeat = 6,
  kAbort = 7,
  kAbortAck = 8,
};

// The longest header of any message.
inline constexpr std::size_t kMaxHeaderBytes = 256;

// Where the payloads of a pair of processes lie, on both sides.
enum class MemoryKind : std::uint8_t {
  kHost,
  kDevice,  // the GPU that the transport was made for
};

// How payloads travel between two processes: the same seen from either.
struct Path {
  MemoryKind memory = MemoryKind::kHost;
  std::string label;  // "tcp_host", "shm", "cuda_ipc", "loopback": on logs, metrics, states
};

// Registered memory that a payload is sent from or received into, zeroed: host memory, 4096-byte
// aligned, or device memory, 256-byte aligned, which no host code may follow. Must outlive every
// operation on it and die before its transport.
class Region {
 public:
  virtual ~Region() = default;
  virtual std::span<std::byte> bytes() const = 0;
};

// A connection to one peer, named within one Transport. Never reused; 0 is none.
enum class PeerHandle : std::uint64_t {};

// The answer to an incoming payload: where to put it, or why not (then it is discarded and
// counted).
struct Landing {
  std::span<std::byte>
      slot;  // at least payload_bytes of a Region of this transport, or empty: refused
  std::uint64_t cookie = 0;  // comes back in OnPayload
};

// What a process does with messages. Thread: all calls come from the transport's progress thread;
// they must not block.
class MessageSink {
 public:
  virtual ~MessageSink() = default;

  // A message without payload. `header` is valid during the call only.
  virtual void OnMessage(PeerHandle from, MessageType type, std::span<const std::byte> header) = 0;

  // A message with payload has arrived or is about to. Validates the header before it names a
  // landing slot. An unknown peer's messages come with the handle 0: there is no way to answer
  // them, and a payload that is accepted from one ends in OnPayload with kFailedPrecondition.
  virtual Landing OnIncoming(PeerHandle from, MessageType type, std::span<const std::byte> header,
                             std::size_t payload_bytes) = 0;

  // The payload that OnIncoming accepted is in its slot (OK), or will never be (then the slot is
  // written to no more either).
  virtual void OnPayload(PeerHandle from, std::uint64_t cookie, const absl::Status& status) = 0;

  // The peer is gone: closed, reset, or silent for longer than the limit. Every payload accepted
  // from it has had its OnPayload.
  virtual void OnPeerLost(PeerHandle peer, const absl::Status& why) = 0;
};

// Called once on the progress thread: OK when the payload's memory may be reused (not: that it has
// arrived).
using SendDone = std::function<void(const absl::Status&)>;

// One per process. Owns one progress thread, which owns all connections; it sleeps when there is
// nothing to do. Thread: any, except where a comment says otherwise.
class Transport {
 public:
  virtual ~Transport() = default;

  // For the peer's Connect; exchanged inside mTLS.
  virtual std::string LocalAddress() const = 0;
  // What this process has for its peers, best first; never empty.
  virtual std::vector<Path> paths() const = 0;
  // The path that Connect takes to `address`: the best that both sides have. kInvalidArgument: not
  // an address of this transport. kFailedPrecondition: there is none, with what is missing.
  virtual absl::StatusOr<Path> PathTo(std::string_view address) const = 0;

  // kFailedPrecondition: no path of this process has its payloads in `memory`.
  virtual absl::StatusOr<std::unique_ptr<Region>> Allocate(std::size_t bytes,
                                                           MemoryKind memory) = 0;

  // Connects to `address`. Both sides of a pair call it with the other's address and with the two
  // 64-bit incarnations that the handshake exchanged: a message from a peer comes with the handle
  // that Connect returned for its incarnation. Asynchronous: a peer that cannot be reached, or not
  // on the path that PathTo names, is reported by OnPeerLost. Errors are PathTo's.
  virtual absl::StatusOr<PeerHandle> Connect(std::string_view address,
                                             std::uint64_t peer_incarnation,
                                             std::string_view peer_name) = 0;

  // Posts one message. `header` (<= kMaxHeaderBytes) is copied; `payload` lies in a Region and
  // stays untouched until `done`. `done` is always called, with kUnavailable when the peer is lost
  // first and kCancelled (on the caller's thread) when the transport has stopped. Messages to one
  // peer may overtake each other.
  virtual void Send(PeerHandle peer, MessageType type, std::span<const std::byte> header,
                    std::span<const std::byte> payload, SendDone done) = 0;

  // Closes the connection; outstanding sends end with kCancelled, and OnPeerLost follows when
  // nothing is in flight any more.
  virtual void Disconnect(PeerHandle peer) = 0;

  // Runs `work` on the progress thread soon, and after `delay` if that is positive: how state
  // machines get their deadlines.
  virtual void Post(std::function<void()> work, absl::Duration delay = absl::ZeroDuration()) = 0;

  // Stops the progress thread; no callback runs after it returns. Idempotent; the destructor calls
  // it.
  virtual void Stop() = 0;
};

}  // namespace kvferry::transport
