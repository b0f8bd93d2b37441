#include "prefill_node/block_sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/string_view.h"

namespace kvferry::prefill {
namespace {

using Kind = SenderAction::Kind;

void Emit(SenderActions& out, Kind kind, std::uint32_t chunk_seq = 0, absl::Status status = {}) {
  out.push_back({.kind = kind, .chunk_seq = chunk_seq, .status = std::move(status)});
}

// A peer's cause: a number that it may have made up.
absl::StatusCode CauseCode(std::uint32_t cause) {
  const bool known = cause >= static_cast<std::uint32_t>(absl::StatusCode::kCancelled) &&
                     cause <= static_cast<std::uint32_t>(absl::StatusCode::kUnauthenticated);
  return known ? static_cast<absl::StatusCode>(cause) : absl::StatusCode::kUnknown;
}

}  // namespace

std::string_view StateName(SenderState state) {
  switch (state) {
    case SenderState::kOffered:
      return "OFFERED";
    case SenderState::kGranted:
      return "GRANTED";
    case SenderState::kSending:
      return "SENDING";
    case SenderState::kCommitted:
      return "COMMITTED";
    case SenderState::kRetained:
      return "RETAINED";
    case SenderState::kReleased:
      return "RELEASED";
    case SenderState::kAborting:
      return "ABORTING";
    case SenderState::kAborted:
      return "ABORTED";
  }
  return "?";
}

BlockSender::BlockSender(const TransferId& id, Epoch epoch, const SenderLimits& limits)
    : id_(id), epoch_(epoch), limits_(limits) {}

absl::Status BlockSender::Unexpected(std::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat("transfer ", id_.ToHex(), ": unexpected ",
                                                 ToAbsl(what), " in state ",
                                                 ToAbsl(StateName(state_))));
}

absl::Status BlockSender::Grant(std::uint32_t credits) {
  if (state_ != SenderState::kOffered) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", id_.ToHex(), ": granted in state ", ToAbsl(StateName(state_))));
  }
  if (credits == 0) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", id_.ToHex(), ": 0 credits"));
  }
  credits_ = credits;
  state_ = SenderState::kGranted;
  return absl::OkStatus();
}

absl::StatusOr<std::uint32_t> BlockSender::AddChunk(std::uint32_t payload_bytes, MonoTime now,
                                                    SenderActions& out) {
  if (aborting()) return cause_;
  const bool open = state_ == SenderState::kGranted || state_ == SenderState::kSending;
  if (!open || commit_wanted_) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", id_.ToHex(), ": a chunk in state ", ToAbsl(StateName(state_)),
                     commit_wanted_ ? " after commit" : ""));
  }
  state_ = SenderState::kSending;
  const std::uint32_t seq = next_seq_++;
  chunks_[seq].bytes = payload_bytes;
  payload_bytes_ += payload_bytes;
  unposted_.push_back(seq);
  PostWithinCredits(now, out);
  return seq;
}

absl::Status BlockSender::Commit(std::int32_t first_token, MonoTime now, SenderActions& out) {
  if (aborting()) return cause_;
  if (state_ != SenderState::kSending || commit_wanted_) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", id_.ToHex(), ": commit in state ", ToAbsl(StateName(state_)),
                     commit_wanted_ ? ", committed before" : ""));
  }
  commit_wanted_ = true;
  first_token_ = first_token;
  PostCommitWhenDue(now, out);
  return absl::OkStatus();
}

void BlockSender::Abort(const absl::Status& why, MonoTime now, SenderActions& out) {
  if (aborting() || state_ == SenderState::kRetained || state_ == SenderState::kReleased) return;
  StartAborting(why, now, out);
}

void BlockSender::PostWithinCredits(MonoTime now, SenderActions& out) {
  while (!unposted_.empty() && outstanding_ < credits_) {
    const std::uint32_t seq = unposted_.front();
    unposted_.pop_front();
    Chunk& chunk = chunks_.at(seq);
    chunk.posted = chunk.sending = true;
    if (outstanding_ == 0) progress_deadline_ = now + limits_.progress_limit;
    ++outstanding_;
    ++sending_;
    ++posted_chunks_;
    posted_bytes_ += chunk.bytes;
    Emit(out, Kind::kSendChunk, seq);
  }
}

void BlockSender::PostCommitWhenDue(MonoTime now, SenderActions& out) {
  if (state_ == SenderState::kSending && commit_wanted_ && unposted_.empty()) {
    state_ = SenderState::kCommitted;
    commit_interval_ = limits_.ack_deadline;
    progress_deadline_ = now + limits_.progress_limit;
    Emit(out, Kind::kSendCommit);
  }
  // The answer is due only when the receiver has everything.
  if (state_ == SenderState::kCommitted && outstanding_ == 0) {
    commit_deadline_ = now + commit_interval_;
  }
}

void BlockSender::Resend(ChunkMap::iterator entry, const absl::Status& why, MonoTime now,
                         SenderActions& out) {
  Chunk& chunk = entry->second;
  if (chunk.resends >= limits_.max_resends) {
    StartAborting(
        absl::Status(why.code(), absl::StrCat("transfer ", id_.ToHex(), ": chunk ", entry->first,
                                              " of ", chunk.bytes, " bytes failed after ",
                                              chunk.resends, " resends: ", why.message())),
        now, out);
    return;
  }
  ++chunk.resends;
  ++resent_chunks_;
  ++sending_;
  chunk.sending = true;
  chunk.nacked = absl::OkStatus();
  chunk.deadline = absl::InfiniteDuration();
  Emit(out, Kind::kSendChunk, entry->first);
}

absl::Status BlockSender::OnSendDone(std::uint32_t chunk_seq, const absl::Status& status,
                                     MonoTime now, SenderActions& out) {
  const auto entry = chunks_.find(chunk_seq);
  if (entry == chunks_.end() || !entry->second.sending) {
    return absl::FailedPreconditionError(absl::StrCat("transfer ", id_.ToHex(),
                                                      ": completion of chunk ", chunk_seq,
                                                      ", which is not being sent"));
  }
  Chunk& chunk = entry->second;
  chunk.sending = false;
  --sending_;
  const bool over = aborting() || state_ == SenderState::kRetained;
  if (chunk.acked || over) {
    chunks_.erase(entry);
    Emit(out, Kind::kFreeSlot, chunk_seq);
    if (state_ == SenderState::kRetained && chunks_.empty()) Close(SenderState::kReleased, out);
    if (state_ == SenderState::kAborting) SettleAbort(now, out);
    return absl::OkStatus();
  }
  if (!status.ok()) {
    StartAborting(status, now, out);
    return absl::OkStatus();
  }
  progress_deadline_ = now + limits_.progress_limit;
  if (!chunk.nacked.ok()) {
    Resend(entry, absl::Status(chunk.nacked), now, out);
  } else {
    chunk.deadline = now + limits_.ack_deadline * (1 << chunk.resends);
  }
  return absl::OkStatus();
}

absl::Status BlockSender::OnMessage(const transport::ControlMessage& message, MonoTime now,
                                    SenderActions& out) {
  if (message.transfer_id != id_ || message.epoch != epoch_) {
    return Unexpected(absl::StrCat("message of transfer ", message.transfer_id.ToHex(), " epoch ",
                                   static_cast<std::uint32_t>(message.epoch)));
  }
  switch (message.type) {
    case transport::MessageType::kAck:
      return OnAck(message.chunk_seq, now, out);
    case transport::MessageType::kNack:
      return OnNack(message.chunk_seq, message.cause, now, out);
    case transport::MessageType::kAdopted:
      return OnAdopted(out);
    case transport::MessageType::kAbort:
      OnPeerAbort(message.cause, now, out);
      return absl::OkStatus();
    case transport::MessageType::kAbortAck:
      return OnAbortAck(out);
    default:
      return Unexpected(
          absl::StrCat("message type ", static_cast<int>(message.type), " from a receiver"));
  }
}

absl::Status BlockSender::OnAck(std::uint32_t seq, MonoTime now, SenderActions& out) {
  const auto entry = chunks_.find(seq);
  if (entry == chunks_.end()) {
    // A repeated ACK of a chunk that is done is normal; one for what was never sent is not.
    return seq < next_seq_ ? absl::OkStatus() : Unexpected(absl::StrCat("ACK of chunk ", seq));
  }
  Chunk& chunk = entry->second;
  if (!chunk.posted) return Unexpected(absl::StrCat("ACK of chunk ", seq, " before it was sent"));
  if (chunk.acked || aborting()) return absl::OkStatus();
  chunk.acked = true;
  chunk.deadline = absl::InfiniteDuration();
  --outstanding_;
  acked_bytes_ += chunk.bytes;
  if (!chunk.sending) {
    chunks_.erase(entry);
    Emit(out, Kind::kFreeSlot, seq);
  }
  const bool waiting = outstanding_ > 0 || state_ == SenderState::kCommitted;
  progress_deadline_ = waiting ? now + limits_.progress_limit : absl::InfiniteDuration();
  PostWithinCredits(now, out);
  PostCommitWhenDue(now, out);
  return absl::OkStatus();
}

absl::Status BlockSender::OnNack(std::uint32_t seq, std::uint32_t cause, MonoTime now,
                                 SenderActions& out) {
  const auto entry = chunks_.find(seq);
  if (entry == chunks_.end()) {
    return seq < next_seq_ ? absl::OkStatus() : Unexpected(absl::StrCat("NACK of chunk ", seq));
  }
  Chunk& chunk = entry->second;
  if (!chunk.posted) return Unexpected(absl::StrCat("NACK of chunk ", seq, " before it was sent"));
  // Late: an earlier copy was good, or the transfer is over.
  if (chunk.acked || aborting()) return absl::OkStatus();
  const absl::Status why(CauseCode(cause), "the receiver refused it");
  if (chunk.sending) {
    chunk.nacked = why;
  } else {
    Resend(entry, why, now, out);
  }
  return absl::OkStatus();
}

absl::Status BlockSender::OnAdopted(SenderActions& out) {
  if (state_ == SenderState::kRetained || state_ == SenderState::kReleased || aborting()) {
    return absl::OkStatus();  // repeated, or crossed our ABORT
  }
  if (state_ != SenderState::kCommitted) return Unexpected("ADOPTED");
  state_ = SenderState::kRetained;
  acked_bytes_ = payload_bytes_;  // it implies every ACK
  outstanding_ = 0;
  commit_deadline_ = progress_deadline_ = absl::InfiniteDuration();
  FreeIdleChunks(out);
  Emit(out, Kind::kReport);
  if (chunks_.empty()) Close(SenderState::kReleased, out);
  return absl::OkStatus();
}

void BlockSender::OnPeerAbort(std::uint32_t cause, MonoTime now, SenderActions& out) {
  switch (state_) {
    case SenderState::kReleased:
    case SenderState::kAborted:
      Emit(out, Kind::kSendAbortAck);
      return;
    case SenderState::kRetained:
      abort_ack_owed_ = true;  // when the last send is done
      return;
    case SenderState::kAborting:
      abort_ack_owed_ = true;
      SettleAbort(now, out);
      return;
    default:
      abort_ack_owed_ = true;
      StartAborting(absl::Status(CauseCode(cause), absl::StrCat("transfer ", id_.ToHex(),
                                                                ": aborted by the receiver")),
                    now, out);
  }
}

absl::Status BlockSender::OnAbortAck(SenderActions& out) {
  if (state_ == SenderState::kAborted) return absl::OkStatus();
  if (state_ != SenderState::kAborting || !abort_sent_) return Unexpected("ABORT_ACK");
  Close(SenderState::kAborted, out);
  return absl::OkStatus();
}

void BlockSender::OnPeerLost(const absl::Status& why, MonoTime now, SenderActions& out) {
  peer_lost_ = true;
  if (aborting()) {
    if (state_ == SenderState::kAborting) SettleAbort(now, out);
    return;
  }
  if (state_ == SenderState::kRetained || state_ == SenderState::kReleased) return;
  StartAborting(absl::UnavailableError(absl::StrCat("transfer ", id_.ToHex(),
                                                    ": decode worker lost: ", why.message())),
                now, out);
}

void BlockSender::StartAborting(const absl::Status& why, MonoTime now, SenderActions& out) {
  const bool told = state_ != SenderState::kOffered;
  state_ = SenderState::kAborting;
  cause_ = why.ok() ? absl::UnknownError("aborted without a reason") : why;
  outstanding_ = 0;
  unposted_.clear();
  commit_deadline_ = progress_deadline_ = absl::InfiniteDuration();
  abort_interval_ = limits_.ack_deadline;
  abort_limit_ = now + limits_.progress_limit;
  FreeIdleChunks(out);
  Emit(out, Kind::kReport, 0, cause_);
  if (!told) {
    Close(SenderState::kAborted, out);
  } else {
    SettleAbort(now, out);
  }
}

// The receiver is told only when nothing of ours is in flight: then its memory is its own again.
void BlockSender::SettleAbort(MonoTime now, SenderActions& out) {
  if (sending_ > 0) return;
  if (peer_lost_ || abort_ack_owed_) {
    Close(SenderState::kAborted, out);
  } else if (!abort_sent_) {
    abort_sent_ = true;
    abort_deadline_ = now + abort_interval_;
    abort_limit_ = now + limits_.progress_limit;  // for the answer
    Emit(out, Kind::kSendAbort, 0, cause_);
  }
}

void BlockSender::FreeIdleChunks(SenderActions& out) {
  for (auto entry = chunks_.begin(); entry != chunks_.end();) {
    if (entry->second.sending) {
      entry->second.acked = true;  // whatever arrives for it now changes nothing
      entry->second.deadline = absl::InfiniteDuration();
      ++entry;
    } else {
      Emit(out, Kind::kFreeSlot, entry->first);
      entry = chunks_.erase(entry);
    }
  }
}

void BlockSender::Close(SenderState end, SenderActions& out) {
  state_ = end;
  abort_deadline_ = abort_limit_ = absl::InfiniteDuration();
  if (abort_ack_owed_ && !peer_lost_) Emit(out, Kind::kSendAbortAck);
  abort_ack_owed_ = false;
  Emit(out, Kind::kClosed);
}

void BlockSender::OnDeadline(MonoTime now, SenderActions& out) {
  if (state_ == SenderState::kAborting) {
    OnAbortDeadline(now, out);
    return;
  }
  if (now >= progress_deadline_) {
    StartAborting(
        absl::UnavailableError(absl::StrCat(
            "transfer ", id_.ToHex(), ": no progress for ",
            absl::FormatDuration(limits_.progress_limit), " in state ", ToAbsl(StateName(state_)),
            ", ", acked_bytes_, " of ", payload_bytes_, " bytes acknowledged")),
        now, out);
    return;
  }
  for (auto entry = chunks_.begin(); entry != chunks_.end(); ++entry) {
    if (now < entry->second.deadline) continue;
    Resend(entry, absl::UnavailableError("no acknowledgement"), now, out);
    if (aborting()) return;
  }
  if (now >= commit_deadline_) {
    commit_interval_ *= 2;
    commit_deadline_ = now + commit_interval_;
    Emit(out, Kind::kSendCommit);
  }
}

void BlockSender::OnAbortDeadline(MonoTime now, SenderActions& out) {
  if (now >= abort_limit_) {
    if (sending_ == 0) {
      Close(SenderState::kAborted, out);  // unanswered, but nothing of ours is in flight
    } else {
      abort_limit_ = absl::InfiniteDuration();
      Emit(out, Kind::kDisconnect);
    }
  } else if (now >= abort_deadline_) {
    abort_interval_ *= 2;
    abort_deadline_ = now + abort_interval_;
    Emit(out, Kind::kSendAbort, 0, cause_);
  }
}

MonoTime BlockSender::next_deadline() const {
  MonoTime next = std::min({commit_deadline_, progress_deadline_, abort_deadline_, abort_limit_});
  for (const auto& [seq, chunk] : chunks_) next = std::min(next, chunk.deadline);
  return next;
}

}  // namespace kvferry::prefill
