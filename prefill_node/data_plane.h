#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/metrics.h"
#include "prefill_node/block_sender.h"
#include "prefill_node/chunk_dump.h"
#include "transport/slot_ring.h"
#include "transport/transport.h"
#include "transport/wire.h"

namespace kvferry::prefill {

class DataPlane;

// One registered send slot, owned: goes back to the data plane when it dies without having been
// sent. Move-only; must die before its data plane.
class SendSlot {
 public:
  SendSlot() = default;
  SendSlot(SendSlot&& other) noexcept { *this = std::move(other); }
  SendSlot& operator=(SendSlot&& other) noexcept;
  ~SendSlot();

  std::span<std::byte> bytes() const;
  std::uint32_t index() const { return index_; }

 private:
  friend class DataPlane;
  SendSlot(DataPlane* owner, std::uint32_t index) : owner_(owner), index_(index) {}
  DataPlane* owner_ = nullptr;
  std::uint32_t index_ = 0;
};

// A decode worker that the handshake introduced.
struct DecodePeer {
  Incarnation incarnation{};
  std::string name;
  std::string data_address;
  transport::PairKey key{};
};

// What a transfer has sent.
struct Shipment {
  std::string transport;     // the label of its path
  std::uint32_t chunks = 0;  // resends not counted
  std::uint32_t resent_chunks = 0;
  std::uint64_t payload_bytes = 0;
};

// How a transfer ended: adopted (OK), or why not.
struct TransferResult {
  absl::Status status;
  Shipment shipment;
};

struct TransferOptions {
  TransferId id;
  Epoch epoch{};
  Incarnation decode{};
  std::uint32_t credits = 0;
  std::uint64_t total_bytes = 0;  // that the transfer will have, for TransferSnapshot
  // Once. On whatever thread brought the end about; must not block.
  std::function<void(const TransferResult&)> on_result;
};

struct TransferSnapshot {
  TransferId id;
  Epoch epoch{};
  std::string_view state;
  std::string peer;
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;
  absl::Duration age;
};

struct DataPlaneOptions {
  Incarnation incarnation{};
  std::size_t slot_bytes = 0;
  std::uint32_t slots = 0;
  SenderLimits limits;
  std::string dump_folder = {};  // of ChunkDump; empty: off
};

// Makes the process's transport, with `sink` for its messages.
using TransportFactory = std::function<absl::StatusOr<std::unique_ptr<transport::Transport>>(
    Incarnation incarnation, transport::MessageSink* sink, const Clock& clock)>;

// The process's data plane: its transport, its decode peers, its send slots and the BlockSender of
// every transfer. A slot is free again only after acknowledgement (or the transfer's end) and send
// completion. Thread: any; one mutex, never held while the transport or a callback is called.
class DataPlane final : private transport::MessageSink {
 public:
  // kInvalidArgument: slots. Else what the transport refuses. clock and metrics outlive it.
  static absl::StatusOr<std::unique_ptr<DataPlane>> Create(const DataPlaneOptions& options,
                                                           const TransportFactory& factory,
                                                           const Clock& clock, Metrics& metrics);
  ~DataPlane() override;

  std::string LocalAddress() const { return transport_->LocalAddress(); }
  // Of the paths that this process has, best first.
  std::vector<std::string> labels() const;
  absl::StatusOr<transport::Path> PathTo(std::string_view address) const {
    return transport_->PathTo(address);
  }
  Incarnation incarnation() const { return options_.incarnation; }
  std::size_t slot_bytes() const { return options_.slot_bytes; }

  // Connects. A peer of the same incarnation is replaced; its transfers end with kUnavailable.
  absl::Status AddPeer(const DecodePeer& peer);
  bool HasPeer(Incarnation peer) const;
  // Whether payloads for this peer lie in device memory. False for one that is not connected.
  bool SendsFromDevice(Incarnation peer) const;

  // kUnavailable: the peer is not connected (any more): shake hands first. kAlreadyExists: the id.
  absl::Status OpenTransfer(const TransferOptions& options);
  // Waits for a free slot. When the transfer ends meanwhile: its status.
  absl::StatusOr<SendSlot> AcquireSlot(const TransferId& id);
  // Sends the first header.payload_bytes of `slot`. The caller has filled in what describes the
  // payload: layers, heads, tokens, head_dim, kind, codec_hash, payload_check, payload_bytes.
  absl::Status SendChunk(const TransferId& id, transport::ChunkHeader header, SendSlot slot);
  absl::Status Commit(const TransferId& id, std::int32_t first_token);
  // So far; empty when it is over or unknown.
  Shipment Shipped(const TransferId& id) const;
  // Nothing of the transfer is posted after it returns. No effect on one that is over or unknown.
  void Abort(const TransferId& id, const absl::Status& why);

  std::vector<TransferSnapshot> Transfers() const;
  std::uint32_t free_slots() const;
  // All send slots in host memory, as long as this lives; perhaps none.
  std::span<std::byte> host_slots() const { return rings_->ring(transport::MemoryKind::kHost); }
  // Until no transfer is left. False: `limit` passed.
  bool WaitIdle(absl::Duration limit) const;
  // Ends every transfer with kCancelled and stops the transport. Idempotent.
  void Stop();

 private:
  friend class SendSlot;

  struct Peer {
    DecodePeer info;
    transport::PeerHandle handle{};
    transport::Path path;
    bool replaced = false;  // by a newer connection; here until its OnPeerLost
  };
  struct SentChunk {
    std::uint32_t slot = 0;
    std::array<std::byte, transport::kChunkHeaderBytes> header{};
    std::uint32_t payload_bytes = 0;
  };
  struct Transfer {
    Transfer(const TransferOptions& o, const SenderLimits& limits)
        : options(o), sender(o.id, o.epoch, limits) {}
    TransferOptions options;
    BlockSender sender;
    Peer peer;  // as it was at the start: answers go to that connection
    absl::flat_hash_map<std::uint32_t, SentChunk> chunks;  // those that hold a slot, by chunk_seq
    MonoTime opened;
    std::uint64_t timer = 0;  // the latest one; older ones do nothing
    MonoTime timer_at = absl::InfiniteDuration();
  };

  // What is to be done once the mutex is released.
  struct Outgoing {
    transport::PeerHandle peer{};
    transport::MessageType type{};
    std::vector<std::byte> header;
    std::span<const std::byte> payload;
    transport::SendDone done;
  };
  struct Outbox {
    std::vector<Outgoing> messages;
    std::vector<transport::PeerHandle> disconnects;
    std::vector<std::pair<absl::Duration, std::function<void()>>> timers;
    std::vector<std::function<void()>> calls;
  };

  DataPlane(const DataPlaneOptions& options, ChunkDump dump, const Clock& clock, Metrics& metrics);

  absl::Status MakeRings();

  void OnMessage(transport::PeerHandle from, transport::MessageType type,
                 std::span<const std::byte> header) override;
  transport::Landing OnIncoming(transport::PeerHandle from, transport::MessageType type,
                                std::span<const std::byte> header,
                                std::size_t payload_bytes) override;
  void OnPayload(transport::PeerHandle from, std::uint64_t cookie,
                 const absl::Status& status) override;
  void OnPeerLost(transport::PeerHandle peer, const absl::Status& why) override;

  void OnSendDone(const TransferId& id, std::uint32_t chunk_seq, const absl::Status& status);
  void OnTimer(const TransferId& id, std::uint64_t timer);

  const Peer* FindPeer(Incarnation incarnation) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  Transfer* Find(const TransferId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static Shipment ShipmentOf(const Transfer& transfer);
  absl::Status HandleMessage(const Peer& from, const transport::ControlMessage& message,
                             Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Turns the sender's actions into work for after the unlock. May erase the transfer.
  void Perform(Transfer& transfer, const SenderActions& actions, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendPayload(Transfer& transfer, std::uint32_t chunk_seq, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendControl(const Peer& peer, const transport::ControlMessage& message, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendAbout(const Transfer& transfer, transport::MessageType type, absl::StatusCode cause,
                 Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Report(const Transfer& transfer, const absl::Status& status, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Arm(Transfer& transfer, Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(Outbox outbox) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReturnSlot(std::uint32_t slot) ABSL_LOCKS_EXCLUDED(mutex_);

  const DataPlaneOptions options_;
  const ChunkDump dump_;
  const Clock& clock_;
  Counter& chunks_;
  Counter& resent_chunks_;
  Counter& payload_bytes_;
  Counter& refused_messages_;
  Counter& adopted_;
  Counter& failed_;

  mutable absl::Mutex mutex_;
  std::vector<Peer> peers_ ABSL_GUARDED_BY(mutex_);
  // Lost before AddPeer could note them.
  absl::flat_hash_set<std::uint64_t> lost_early_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<TransferId, std::unique_ptr<Transfer>> transfers_ ABSL_GUARDED_BY(mutex_);
  transport::FreeSlots free_slots_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;

  std::unique_ptr<transport::Transport> transport_;
  std::optional<transport::SlotRings> rings_;  // set and fixed after Create
};

}  // namespace kvferry::prefill
