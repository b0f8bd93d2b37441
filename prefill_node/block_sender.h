#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "transport/wire.h"

namespace kvferry::prefill {

// docs/protocol.md, "States".
enum class SenderState : std::uint8_t {
  kOffered,    // known, not yet granted
  kGranted,    // the receiver's promise is in hand, nothing sent
  kSending,    // chunks in flight
  kCommitted,  // every chunk posted, COMMIT sent
  kRetained,   // adopted; a local send still reads a slot
  kReleased,   // end: adopted, nothing held
  kAborting,   // no more posts; waiting for own sends, then for the receiver
  kAborted,    // end: failed, nothing held
};
std::string_view StateName(SenderState state);

struct SenderLimits {
  absl::Duration ack_deadline = absl::Seconds(1);     // of a sent chunk; doubles with each resend
  int max_resends = 3;                                // of one chunk
  absl::Duration progress_limit = absl::Seconds(10);  // without a new acknowledgement
};

// What the shell has to do, in this order.
struct SenderAction {
  enum class Kind : std::uint8_t {
    kSendChunk,     // post chunk_seq from its slot; its completion comes back as OnSendDone
    kFreeSlot,      // chunk_seq's slot is read by nobody any more
    kSendCommit,    // with chunks, payload_bytes, first_token of this transfer
    kSendAbort,     // with the code of `status`
    kSendAbortAck,  // the receiver's ABORT is obeyed: nothing of this transfer is in flight
    kDisconnect,    // own sends do not complete: only closing the connection ends them
    kReport,        // once: OK is adopted, anything else the reason of failure
    kClosed,        // once, last: the transfer is over and may be forgotten
  };
  Kind kind{};
  std::uint32_t chunk_seq = 0;
  absl::Status status;
};
using SenderActions = std::vector<SenderAction>;

// One transfer on the prefill side: credits, acknowledgements, resends, commit, abort. Events in,
// actions out: no threads, clocks or sockets; `now` never goes backwards. An event that is illegal
// in the current state changes nothing and returns why: kFailedPrecondition for the shell's own
// calls, kInvalidArgument for a peer's message (to be counted, never believed).
// Invariants: a chunk's slot is freed exactly once, when it is acknowledged (or the transfer is
// over) and no send reads it; at most `credits` chunks are posted and not acknowledged.
// Thread: none; the owner serializes.
class BlockSender {
 public:
  BlockSender(const TransferId& id, Epoch epoch, const SenderLimits& limits);

  // The receiver has promised pages and `credits` (>= 1) landing slots.
  absl::Status Grant(std::uint32_t credits);
  // The next chunk lies encoded in its slot. Returns its sequence number. When the transfer is
  // already failing the status is its reason and the caller keeps the slot.
  absl::StatusOr<std::uint32_t> AddChunk(std::uint32_t payload_bytes, MonoTime now,
                                         SenderActions& out);
  // No chunk follows.
  absl::Status Commit(std::int32_t first_token, MonoTime now, SenderActions& out);
  // Gives up, for the reason `why` (not OK). Idempotent; has no effect once adopted.
  void Abort(const absl::Status& why, MonoTime now, SenderActions& out);

  // A posted chunk's memory is not read any more.
  absl::Status OnSendDone(std::uint32_t chunk_seq, const absl::Status& status, MonoTime now,
                          SenderActions& out);
  // ACK, NACK, ADOPTED, ABORT, ABORT_ACK of this transfer.
  absl::Status OnMessage(const transport::ControlMessage& message, MonoTime now,
                         SenderActions& out);
  // The connection is gone: nothing will be answered.
  void OnPeerLost(const absl::Status& why, MonoTime now, SenderActions& out);
  // Call at next_deadline() or later; early calls do nothing.
  void OnDeadline(MonoTime now, SenderActions& out);
  // absl::InfiniteDuration(): none.
  MonoTime next_deadline() const;

  const TransferId& id() const { return id_; }
  Epoch epoch() const { return epoch_; }
  SenderState state() const { return state_; }
  bool over() const { return state_ == SenderState::kReleased || state_ == SenderState::kAborted; }
  // Why the transfer failed; OK while it has not.
  const absl::Status& cause() const { return cause_; }
  std::uint32_t chunks() const { return next_seq_; }
  std::uint64_t payload_bytes() const { return payload_bytes_; }
  // Of the chunks that have been posted, resends not counted.
  std::uint32_t posted_chunks() const { return posted_chunks_; }
  std::uint64_t posted_bytes() const { return posted_bytes_; }
  std::uint64_t acked_bytes() const { return acked_bytes_; }
  std::int32_t first_token() const { return first_token_; }
  std::uint32_t resent_chunks() const { return resent_chunks_; }
  std::uint32_t outstanding() const { return outstanding_; }

 private:
  struct Chunk {
    std::uint32_t bytes = 0;
    int resends = 0;
    bool posted = false;
    bool sending = false;  // posted, completion not seen
    bool acked = false;
    absl::Status nacked;  // not OK: to be sent again as soon as the running send is done
    MonoTime deadline = absl::InfiniteDuration();  // of the acknowledgement
  };
  using ChunkMap = std::map<std::uint32_t, Chunk>;

  bool aborting() const {
    return state_ == SenderState::kAborting || state_ == SenderState::kAborted;
  }
  absl::Status Unexpected(std::string_view what) const;
  absl::Status OnAck(std::uint32_t seq, MonoTime now, SenderActions& out);
  absl::Status OnNack(std::uint32_t seq, std::uint32_t cause, MonoTime now, SenderActions& out);
  absl::Status OnAdopted(SenderActions& out);
  void OnPeerAbort(std::uint32_t cause, MonoTime now, SenderActions& out);
  absl::Status OnAbortAck(SenderActions& out);

  void PostWithinCredits(MonoTime now, SenderActions& out);
  void PostCommitWhenDue(MonoTime now, SenderActions& out);
  void Resend(ChunkMap::iterator chunk, const absl::Status& why, MonoTime now, SenderActions& out);
  void StartAborting(const absl::Status& why, MonoTime now, SenderActions& out);
  void SettleAbort(MonoTime now, SenderActions& out);
  void FreeIdleChunks(SenderActions& out);
  void Close(SenderState end, SenderActions& out);
  void OnAbortDeadline(MonoTime now, SenderActions& out);

  const TransferId id_;
  const Epoch epoch_;
  const SenderLimits limits_;

  SenderState state_ = SenderState::kOffered;
  absl::Status cause_;
  std::uint32_t credits_ = 0;
  std::uint32_t outstanding_ = 0;  // posted, not acknowledged
  std::uint32_t next_seq_ = 0;
  ChunkMap chunks_;                     // those that still hold a slot
  std::deque<std::uint32_t> unposted_;  // wait for a credit
  std::uint64_t payload_bytes_ = 0;
  std::uint32_t posted_chunks_ = 0;
  std::uint64_t posted_bytes_ = 0;
  std::uint64_t acked_bytes_ = 0;
  std::uint32_t resent_chunks_ = 0;
  int sending_ = 0;  // chunks whose send has not completed

  bool commit_wanted_ = false;
  std::int32_t first_token_ = -1;
  absl::Duration commit_interval_;
  MonoTime commit_deadline_ = absl::InfiniteDuration();
  MonoTime progress_deadline_ = absl::InfiniteDuration();

  bool peer_lost_ = false;
  bool abort_ack_owed_ = false;
  bool abort_sent_ = false;
  absl::Duration abort_interval_;
  MonoTime abort_deadline_ = absl::InfiniteDuration();  // of the next repetition
  MonoTime abort_limit_ = absl::InfiniteDuration();     // of the whole abort
};

}  // namespace kvferry::prefill
