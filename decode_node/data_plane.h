#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/device_watch.h"
#include "common/ids.h"
#include "common/metrics.h"
#include "common/serial_worker.h"
#include "decode_node/admission.h"
#include "decode_node/block_receiver.h"
#include "decode_node/cache_store.h"
#include "transport/slot_ring.h"
#include "transport/transport.h"
#include "transport/wire.h"

namespace kvferry::decode {

// A prefill worker that shook hands.
struct PrefillPeer {
  Incarnation incarnation{};
  std::string name;
  std::string data_address;
  transport::PairKey key{};
};

// A sequence on its way to the engine: everything of it is here and checked.
struct AdoptedSequence {
  std::unique_ptr<StoredSequence> cache;
  std::string transport;  // the label of the path that it came on
  std::int32_t first_token = 0;
  std::uint64_t payload_bytes = 0;
  std::uint32_t chunks = 0;
  std::uint32_t bad_chunks = 0;  // that had to be sent again
};

// Who opened Run. Thread: any; must not block.
class RunListener {
 public:
  virtual ~RunListener() = default;
  // Once at most. The listener owes a Finish for it.
  virtual void OnAdopted(AdoptedSequence sequence) = 0;
  // Once at most: the transfer has failed or was released, before or after OnAdopted.
  virtual void OnFailed(const absl::Status& why) = 0;
};

struct Reservation {
  Admission admission;
  TransferId id;
  absl::Duration lease;
};

struct TransferSnapshot {
  TransferId id;
  Epoch epoch{};
  std::string request_id;
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
  ReceiverLimits limits;  // its lease is the longest that a reservation gets
  AdmissionLimits admission;
  int vocabulary = 0;
  std::function<absl::Duration()> step_time;  // of the engine, for retry hints
  // Chunks are adopted on so many threads of their own, which wait for a GPU so that the progress
  // thread does not. 0: on the progress thread.
  int adopter_threads = 0;
  DeviceWatch* watch = nullptr;  // of where the chunks are adopted; outlives the data plane
};

// Makes the process's transport, with `sink` for its messages.
using TransportFactory = std::function<absl::StatusOr<std::unique_ptr<transport::Transport>>(
    Incarnation incarnation, transport::MessageSink* sink, const Clock& clock)>;

// The process's data plane: its transport, its prefill peers, its landing ring and the
// BlockReceiver of every transfer. A landing slot is not used again before the payload that it was
// given to has had its OnPayload. Chunks are checked and copied on the progress thread.
// Thread: any; one mutex, never held while the transport or a listener is called, or bytes are
// copied.
class DataPlane final : private transport::MessageSink {
 public:
  // kInvalidArgument: slots. Else what the transport refuses. store, clock, metrics outlive it.
  static absl::StatusOr<std::unique_ptr<DataPlane>> Create(const DataPlaneOptions& options,
                                                           CacheStore& store,
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

  // Connects. A peer of the same incarnation is replaced; what it was sending fails.
  absl::Status AddPeer(const PrefillPeer& peer);

  // Promises rows, a sequence and landing slots, or says why not. kUnavailable: draining.
  // `lease`: zero is the configured one, which is also the longest.
  Reservation Reserve(const std::string& request_id, const Demand& demand, Epoch epoch,
                      absl::Duration lease);
  // kAborted: no such transfer (any more). kAlreadyExists: Run is open. kInvalidArgument: other
  // counts than were reserved, or another epoch. shared_ptr: the stream and the transfer end in
  // either order.
  absl::Status OpenRun(const TransferId& id, Epoch epoch, const Demand& demand,
                       std::shared_ptr<RunListener> listener);
  // Gives a transfer up. No effect on one that is unknown or has another epoch.
  void Release(const TransferId& id, Epoch epoch, const absl::Status& why);
  // The engine has given up the sequence of OnAdopted.
  void Finish(const TransferId& id);

  void StartDraining();
  bool draining() const;
  std::vector<TransferSnapshot> Transfers() const;
  std::uint32_t free_slots() const;
  std::uint32_t slots() const { return rings_->slots(); }
  // Until no transfer is left. False: `limit` passed.
  bool WaitIdle(absl::Duration limit) const;
  // Fails every transfer with kUnavailable and stops the transport. Idempotent.
  void Stop();

 private:
  struct Peer {
    PrefillPeer info;
    transport::PeerHandle handle{};
    transport::Path path;
    bool replaced = false;  // by a newer connection; here until its OnPeerLost
  };
  struct Transfer {
    Transfer(TransferSpec spec, const ReceiverLimits& limits, MonoTime now)
        : receiver(std::move(spec), limits, now), opened(now) {}
    BlockReceiver receiver;
    std::unique_ptr<StoredSequence> sequence;  // null once the engine has it
    std::string request_id;
    std::string transport;  // the path's label, from the first chunk on
    Demand demand;
    std::uint32_t credits = 0;  // 0 once they have gone back
    std::shared_ptr<RunListener> listener;
    MonoTime opened;
    std::uint64_t timer = 0;  // the latest one; older ones do nothing
    MonoTime timer_at = absl::InfiniteDuration();
  };
  // A transfer that is over: late messages about it are answered, never believed.
  struct Tombstone {
    Epoch epoch{};
    bool adopted = false;
  };

  // What is to be done once the mutex is released.
  struct Outgoing {
    transport::PeerHandle peer{};
    transport::MessageType type{};
    std::vector<std::byte> header;
  };
  struct Start {
    std::shared_ptr<RunListener> listener;
    AdoptedSequence sequence;
  };
  struct Failure {
    std::shared_ptr<RunListener> listener;
    absl::Status why;
  };
  struct Outbox {
    std::vector<Outgoing> messages;
    std::vector<transport::PeerHandle> disconnects;
    std::vector<std::pair<absl::Duration, std::function<void()>>> timers;
    std::vector<Start> starts;
    std::vector<Failure> failures;
  };

  DataPlane(const DataPlaneOptions& options, CacheStore& store, const Clock& clock,
            Metrics& metrics);

  absl::Status MakeRings();

  void OnMessage(transport::PeerHandle from, transport::MessageType type,
                 std::span<const std::byte> header) override;
  transport::Landing OnIncoming(transport::PeerHandle from, transport::MessageType type,
                                std::span<const std::byte> header,
                                std::size_t payload_bytes) override;
  void OnPayload(transport::PeerHandle from, std::uint64_t cookie,
                 const absl::Status& status) override;
  // Checks and copies what has landed in `slot`, and tells its transfer.
  void Adopt(std::uint32_t slot, const absl::Status& status);
  void OnPeerLost(transport::PeerHandle handle, const absl::Status& why) override;
  void OnTimer(const TransferId& id, std::uint64_t timer);

  const Peer* FindPeer(transport::PeerHandle handle) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Transfer* Find(const TransferId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Reservation ReserveLocked(const std::string& request_id, const Demand& demand, Epoch epoch,
                            absl::Duration lease, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  TransferSpec MakeSpec(const Demand& demand, Epoch epoch, std::uint32_t credits) const;
  absl::StatusOr<std::uint32_t> AcceptChunk(transport::PeerHandle from,
                                            std::span<const std::byte> bytes,
                                            std::size_t payload_bytes, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleMessage(const Peer& from, const transport::ControlMessage& message,
                             Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AnswerUnknown(const Peer& from, transport::MessageType type, const TransferId& id,
                             Epoch epoch, Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Perform(Transfer& transfer, const ReceiverActions& actions, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fill(Transfer& transfer, std::uint32_t chunk_seq) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Report(Transfer& transfer, const absl::Status& why, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Bury(Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReturnCredits(Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendAbout(const Transfer& transfer, transport::MessageType type, std::uint32_t chunk_seq,
                 absl::StatusCode cause, Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendControl(const Peer& peer, transport::ControlMessage message, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Arm(Transfer& transfer, Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(Outbox outbox);

  const DataPlaneOptions options_;
  CacheStore& store_;
  const Clock& clock_;
  Counter& chunks_;
  Counter& payload_bytes_;
  Counter& refused_messages_;
  Counter& bad_chunks_;
  Counter& adopted_;
  Counter& failed_;

  mutable absl::Mutex mutex_;
  std::vector<Peer> peers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::uint64_t> lost_early_
      ABSL_GUARDED_BY(mutex_);  // before AddPeer was done
  absl::flat_hash_map<TransferId, std::unique_ptr<Transfer>> transfers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<TransferId, Tombstone> tombstones_ ABSL_GUARDED_BY(mutex_);
  std::deque<TransferId> tombstone_order_ ABSL_GUARDED_BY(mutex_);  // the newest ones are kept
  transport::FreeSlots free_slots_ ABSL_GUARDED_BY(mutex_);
  // By slot: what one that is taken was given to.
  std::vector<transport::ChunkHeader> landing_ ABSL_GUARDED_BY(mutex_);
  std::uint32_t free_credits_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;

  std::unique_ptr<transport::Transport> transport_;
  // Each ring has a slot for every credit. Set and fixed after Create.
  std::optional<transport::SlotRings> rings_;
  std::unique_ptr<CacheMemory::Pin> pin_;  // of the ring in host memory; null: there is none
  // None: chunks are adopted on the progress thread. They stop after the transport. A chunk that
  // came twice goes to one of them, which adopts it once.
  std::vector<std::unique_ptr<SerialWorker>> adopters_;
};

}  // namespace kvferry::decode
