#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "kvcodec/plan.h"
#include "transport/wire.h"

namespace kvferry::decode {

// docs/protocol.md, "States".
enum class ReceiverState : std::uint8_t {
  kReserved,     // pages and credits are promised, nothing has arrived
  kReceiving,    // chunks arrive
  kVerifying,    // COMMIT is here, chunks are still missing
  kAdopted,      // everything is here and checked; nobody has opened Run yet
  kRunning,      // the engine has the sequence
  kFencing,      // failed; ABORT sent, the sender may still write to landing slots
  kQuarantined,  // the sender has stopped, a payload that it had begun is still landing
  kFreed,        // end
};
std::string_view StateName(ReceiverState state);

// What was promised for one transfer, and therefore what its messages may say.
struct TransferSpec {
  TransferId id;
  Epoch epoch{};
  std::uint64_t codec_hash = 0;
  codec::CacheGeometry geometry;
  codec::BlockPlan plan;                // of the prompt
  std::vector<std::size_t> page_bytes;  // by layer
  std::size_t slot_bytes = 0;           // the largest payload
  std::uint32_t credits = 0;            // chunks that may be landing at once
  int vocabulary = 0;
};

struct ReceiverLimits {
  absl::Duration lease = absl::Seconds(30);           // until Run is opened; between two chunks
  absl::Duration progress_limit = absl::Seconds(10);  // of a payload that lands; after COMMIT
  absl::Duration abort_interval = absl::Seconds(1);   // of the first repetition of ABORT
  int max_resends = 3;                                // of one chunk
};

// What the shell has to do, in this order.
struct ReceiverAction {
  enum class Kind : std::uint8_t {
    kFill,          // chunk_seq's pages: granted -> filled
    kSendAck,       // chunk_seq
    kSendNack,      // chunk_seq, with the code of `status`
    kPublish,       // all pages: filled -> published; the landing credits go back
    kSendAdopted,   //
    kStart,         // once: the engine may have the sequence
    kQuarantine,    // pages: granted -> quarantined, filled -> free
    kSendAbort,     // with the code of `status`
    kSendAbortAck,  // nothing of this transfer will be accepted any more
    kDisconnect,    // the sender does not answer: only closing the connection stops it
    kReport,        // once: why it failed
    kFreed,         // once, last: whatever it still holds goes back; it may be forgotten
  };
  Kind kind{};
  std::uint32_t chunk_seq = 0;
  absl::Status status;
};
using ReceiverActions = std::vector<ReceiverAction>;

// One transfer on the decode side: checks, duplicates, totals, leases, fencing. Events in, actions
// out: no threads, clocks or sockets; `now` never goes backwards. A peer's message that is illegal
// here changes nothing and returns why (to be counted, never believed).
// Invariants: every (layer, block) is filled by exactly one chunk; at most `credits` chunks land at
// once; kFreed comes only when no payload is landing.
// Thread: none; the owner serializes.
class BlockReceiver {
 public:
  BlockReceiver(TransferSpec spec, const ReceiverLimits& limits, MonoTime now);

  // A chunk's header is here, its payload is about to be. OK: give it a landing slot, and call
  // OnLanded once. kAlreadyExists: a duplicate (acknowledged again if it was adopted).
  // kInvalidArgument: it does not fit what was promised. kAborted: the transfer is dead, the
  // sender is told again. kResourceExhausted: more than its credits.
  absl::Status OnChunk(transport::PeerHandle from, const transport::ChunkHeader& header,
                       std::size_t payload_bytes, MonoTime now, ReceiverActions& out);
  // Whether a payload that has landed is to be checked and copied: not after a fault.
  bool Wants(std::uint32_t chunk_seq) const;
  // The payload has been checked and copied (OK), or was bad (kDataLoss), or never came (else).
  absl::Status OnLanded(std::uint32_t chunk_seq, const absl::Status& status, MonoTime now,
                        ReceiverActions& out);
  // COMMIT, ABORT, ABORT_ACK of this transfer.
  absl::Status OnMessage(transport::PeerHandle from, const transport::ControlMessage& message,
                         MonoTime now, ReceiverActions& out);
  // The connection is gone. Transfers that are adopted go on.
  void OnPeerLost(transport::PeerHandle peer, const absl::Status& why, MonoTime now,
                  ReceiverActions& out);

  // Decode.Run was opened. kAlreadyExists: for the second time. kAborted: the transfer has failed.
  absl::Status OnRunOpened(MonoTime now, ReceiverActions& out);
  // Gives the transfer up for the reason `why` (not OK). Idempotent. While it runs this is only
  // reported: the engine ends it, then OnFinished.
  void Release(const absl::Status& why, MonoTime now, ReceiverActions& out);
  // The engine has given up the sequence. kFailedPrecondition: it was not running.
  absl::Status OnFinished(ReceiverActions& out);

  // Call at next_deadline() or later; early calls do nothing.
  void OnDeadline(MonoTime now, ReceiverActions& out);
  // absl::InfiniteDuration(): none.
  MonoTime next_deadline() const;

  const TransferSpec& spec() const { return spec_; }
  ReceiverState state() const { return state_; }
  bool adopted() const { return adopted_; }
  // Why it failed; OK while it has not.
  const absl::Status& cause() const { return cause_; }
  // Who sends: known from the first message on.
  std::optional<transport::PeerHandle> peer() const { return peer_; }
  std::int32_t first_token() const { return commit_.first_token; }
  // Of a chunk that was accepted.
  const transport::ChunkHeader& header(std::uint32_t chunk_seq) const {
    return chunks_.at(chunk_seq).header;
  }
  std::uint64_t bytes_done() const { return bytes_done_; }
  std::uint64_t bytes_total() const { return bytes_total_; }
  std::uint32_t chunks_done() const { return chunks_done_; }
  std::uint32_t bad_chunks() const { return bad_chunks_; }
  std::uint32_t landing() const { return landing_; }

 private:
  enum class Coverage : std::uint8_t { kNone, kLanding, kDone };
  struct Chunk {
    transport::ChunkHeader header;
    Coverage state = Coverage::kNone;
    int bad = 0;  // copies that failed their check
  };

  bool receiving() const {
    return state_ == ReceiverState::kReserved || state_ == ReceiverState::kReceiving ||
           state_ == ReceiverState::kVerifying;
  }
  absl::Status Refuse(std::string_view what) const;
  absl::Status CheckChunk(const transport::ChunkHeader& header, std::size_t payload_bytes) const;
  absl::Status CheckRange(const transport::ChunkHeader& header) const;
  std::uint64_t PayloadBytes(const transport::ChunkHeader& header) const;
  absl::Status CheckUncovered(const transport::ChunkHeader& header) const;
  template <typename Visit>
  void ForEachUnit(const transport::ChunkHeader& header, Visit visit) const;
  void Cover(const transport::ChunkHeader& header, Coverage coverage);

  absl::Status OnCommit(const transport::ControlMessage& message, MonoTime now,
                        ReceiverActions& out);
  void OnPeerAbort(const transport::ControlMessage& message, ReceiverActions& out);
  absl::Status OnAbortAck(ReceiverActions& out);
  void AdoptWhenComplete(MonoTime now, ReceiverActions& out);
  void Fail(const absl::Status& why, MonoTime now, ReceiverActions& out);
  void Settle(ReceiverActions& out);
  void Free(ReceiverActions& out);

  const TransferSpec spec_;
  const ReceiverLimits limits_;
  std::uint64_t bytes_total_ = 0;
  std::uint32_t units_total_ = 0;

  ReceiverState state_ = ReceiverState::kReserved;
  absl::Status cause_;
  std::optional<transport::PeerHandle> peer_;
  bool run_open_ = false;
  bool adopted_ = false;
  bool committed_ = false;
  bool abort_ack_owed_ = false;
  transport::ControlMessage commit_;

  std::map<std::uint32_t, Chunk> chunks_;  // by chunk_seq
  std::vector<Coverage> coverage_;         // [layer][blocks.., sinks, window]
  std::uint32_t landing_ = 0;
  std::uint32_t chunks_done_ = 0;
  std::uint32_t units_done_ = 0;
  std::uint64_t bytes_done_ = 0;
  std::uint32_t bad_chunks_ = 0;

  MonoTime last_progress_;
  absl::Duration abort_interval_;
  MonoTime abort_deadline_ = absl::InfiniteDuration();  // of the next repetition
  MonoTime abort_limit_ = absl::InfiniteDuration();     // of the answer
};

}  // namespace kvferry::decode
