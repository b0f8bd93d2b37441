#include "decode_node/block_receiver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::decode {
namespace {

using transport::ChunkHeader;
using transport::ChunkKind;
using transport::ControlMessage;
using transport::PeerHandle;
using Kind = ReceiverAction::Kind;

void Emit(ReceiverActions& out, Kind kind, std::uint32_t chunk_seq = 0, absl::Status status = {}) {
  out.push_back({.kind = kind, .chunk_seq = chunk_seq, .status = std::move(status)});
}

// A peer's cause: a number that it may have made up.
absl::StatusCode CauseCode(std::uint32_t cause) {
  const bool known = cause >= static_cast<std::uint32_t>(absl::StatusCode::kCancelled) &&
                     cause <= static_cast<std::uint32_t>(absl::StatusCode::kUnauthenticated);
  return known ? static_cast<absl::StatusCode>(cause) : absl::StatusCode::kUnknown;
}

// A resend is the same chunk in another slot.
bool SameChunk(const ChunkHeader& a, const ChunkHeader& b) {
  return a.kind == b.kind && a.layer_begin == b.layer_begin && a.layer_count == b.layer_count &&
         a.token_begin == b.token_begin && a.token_count == b.token_count &&
         a.payload_bytes == b.payload_bytes && a.payload_check == b.payload_check;
}

}  // namespace

std::string_view StateName(ReceiverState state) {
  switch (state) {
    case ReceiverState::kReserved:
      return "RESERVED";
    case ReceiverState::kReceiving:
      return "RECEIVING";
    case ReceiverState::kVerifying:
      return "VERIFYING";
    case ReceiverState::kAdopted:
      return "ADOPTED";
    case ReceiverState::kRunning:
      return "RUNNING";
    case ReceiverState::kFencing:
      return "FENCING";
    case ReceiverState::kQuarantined:
      return "QUARANTINED";
    case ReceiverState::kFreed:
      return "FREED";
  }
  return "?";
}

BlockReceiver::BlockReceiver(TransferSpec spec, const ReceiverLimits& limits, MonoTime now)
    : spec_(std::move(spec)), limits_(limits), last_progress_(now) {
  const codec::BlockPlan& plan = spec_.plan;
  const int layers = spec_.geometry.layers;
  for (const std::size_t bytes : spec_.page_bytes) bytes_total_ += bytes * plan.blocks;
  bytes_total_ += layers * codec::Raw16Bytes(plan.sinks + plan.window_tokens(),
                                             spec_.geometry.kv_heads, spec_.geometry.head_dim);
  const int units = plan.blocks + (plan.sinks > 0 ? 1 : 0) + (plan.window_tokens() > 0 ? 1 : 0);
  units_total_ = static_cast<std::uint32_t>(layers * units);
  coverage_.assign(static_cast<std::size_t>(layers) * (plan.blocks + 2), Coverage::kNone);
}

absl::Status BlockReceiver::Refuse(std::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat("transfer ", spec_.id.ToHex(), " in state ",
                                                 ToAbsl(StateName(state_)), ": ", ToAbsl(what)));
}

// Ranges are compared by subtraction: nothing that a peer says is added to anything.
absl::Status BlockReceiver::CheckRange(const ChunkHeader& header) const {
  const std::uint32_t layers = spec_.geometry.layers;
  if (header.layer_count == 0 || header.layer_begin >= layers ||
      header.layer_count > layers - header.layer_begin) {
    return Refuse(
        absl::StrCat("layers ", header.layer_begin, " + ", header.layer_count, " of ", layers));
  }
  const std::uint32_t sinks = spec_.plan.sinks;
  if (header.kind == ChunkKind::kBlocks) {
    const std::uint32_t blocks = spec_.plan.blocks;
    const std::uint32_t block = (header.token_begin - sinks) / codec::kBlockTokens;
    const bool aligned = header.token_begin >= sinks &&
                         (header.token_begin - sinks) % codec::kBlockTokens == 0 &&
                         header.token_count % codec::kBlockTokens == 0;
    if (!aligned || header.token_count == 0 || block >= blocks ||
        header.token_count / codec::kBlockTokens > blocks - block) {
      return Refuse(absl::StrCat("tokens ", header.token_begin, " + ", header.token_count,
                                 " are not whole blocks of the ", blocks, " that start at token ",
                                 sinks));
    }
    return absl::OkStatus();
  }
  const bool is_sinks = header.kind == ChunkKind::kSinks;
  if (!is_sinks && header.kind != ChunkKind::kWindow) {
    return Refuse(absl::StrCat("kind ", static_cast<int>(header.kind)));
  }
  const std::uint32_t begin = is_sinks ? 0 : spec_.plan.window_begin;
  const std::uint32_t count = is_sinks ? sinks : spec_.plan.window_tokens();
  if (count == 0 || header.token_begin != begin || header.token_count != count) {
    return Refuse(absl::StrCat("tokens ", header.token_begin, " + ", header.token_count, ", not ",
                               begin, " + ", count, " of the ", is_sinks ? "sinks" : "window"));
  }
  return absl::OkStatus();
}

std::uint64_t BlockReceiver::PayloadBytes(const ChunkHeader& header) const {
  if (header.kind != ChunkKind::kBlocks) {
    return header.layer_count * codec::Raw16Bytes(static_cast<int>(header.token_count),
                                                  spec_.geometry.kv_heads, spec_.geometry.head_dim);
  }
  std::uint64_t bytes = 0;
  for (int i = 0; i < header.layer_count; ++i) bytes += spec_.page_bytes[header.layer_begin + i];
  return bytes * (header.token_count / codec::kBlockTokens);
}

absl::Status BlockReceiver::CheckChunk(const ChunkHeader& header, std::size_t payload_bytes) const {
  if (header.codec_hash != spec_.codec_hash) {
    return Refuse(absl::StrCat("codec ", absl::Hex(header.codec_hash), ", granted is ",
                               absl::Hex(spec_.codec_hash)));
  }
  if (header.flags != 0) return Refuse(absl::StrCat("flags ", header.flags));
  if (header.head_dim != spec_.geometry.head_dim || header.kv_head_begin != 0 ||
      header.kv_head_count != spec_.geometry.kv_heads) {
    return Refuse(absl::StrCat("KV heads ", header.kv_head_begin, " + ", header.kv_head_count,
                               " of ", header.head_dim, " channels, granted are ",
                               spec_.geometry.kv_heads, " of ", spec_.geometry.head_dim));
  }
  // Every chunk brings something new: this bounds what a sender can make us remember.
  const std::uint32_t most = committed_ ? commit_.chunks : units_total_;
  if (header.chunk_seq >= most) {
    return Refuse(absl::StrCat("chunk ", header.chunk_seq, " of at most ", most));
  }
  KVF_RETURN_IF_ERROR(CheckRange(header));
  const std::uint64_t bytes = PayloadBytes(header);
  if (header.payload_bytes != bytes || payload_bytes != bytes || bytes > spec_.slot_bytes) {
    return Refuse(absl::StrCat("payload of ", payload_bytes, " bytes, announced ",
                               header.payload_bytes, ", its ranges say ", bytes, ", a slot holds ",
                               spec_.slot_bytes));
  }
  return absl::OkStatus();
}

template <typename Visit>
void BlockReceiver::ForEachUnit(const ChunkHeader& header, Visit visit) const {
  const std::size_t blocks = spec_.plan.blocks;
  std::size_t begin = blocks + (header.kind == ChunkKind::kWindow ? 1 : 0);
  std::size_t count = 1;
  if (header.kind == ChunkKind::kBlocks) {
    begin = (header.token_begin - spec_.plan.sinks) / codec::kBlockTokens;
    count = header.token_count / codec::kBlockTokens;
  }
  for (std::size_t layer = header.layer_begin; layer - header.layer_begin < header.layer_count;
       ++layer) {
    for (std::size_t unit = begin; unit < begin + count; ++unit) {
      visit(layer * (blocks + 2) + unit);
    }
  }
}

absl::Status BlockReceiver::CheckUncovered(const ChunkHeader& header) const {
  bool covered = false;
  ForEachUnit(header, [&](std::size_t unit) { covered |= coverage_[unit] != Coverage::kNone; });
  if (!covered) return absl::OkStatus();
  return Refuse(absl::StrCat("chunk ", header.chunk_seq, " covers layers ", header.layer_begin,
                             " + ", header.layer_count, ", tokens ", header.token_begin, " + ",
                             header.token_count, ", of which another chunk has brought some"));
}

void BlockReceiver::Cover(const ChunkHeader& header, Coverage coverage) {
  ForEachUnit(header, [&](std::size_t unit) { coverage_[unit] = coverage; });
  if (coverage == Coverage::kDone) ForEachUnit(header, [&](std::size_t) { ++units_done_; });
}

absl::Status BlockReceiver::OnChunk(PeerHandle from, const ChunkHeader& header,
                                    std::size_t payload_bytes, MonoTime now, ReceiverActions& out) {
  if (header.transfer_id != spec_.id || header.epoch != spec_.epoch) {
    return Refuse(absl::StrCat("chunk of transfer ", header.transfer_id.ToHex(), " epoch ",
                               static_cast<std::uint32_t>(header.epoch)));
  }
  if (peer_.has_value() && *peer_ != from) return Refuse("chunk of another sender");
  if (state_ == ReceiverState::kFencing) {
    Emit(out, Kind::kSendAbort, 0, cause_);
    return absl::AbortedError(absl::StrCat("transfer ", spec_.id.ToHex(), " is dead"));
  }
  if (state_ == ReceiverState::kQuarantined || state_ == ReceiverState::kFreed) {
    return absl::AbortedError(absl::StrCat("transfer ", spec_.id.ToHex(), " is dead"));
  }
  KVF_RETURN_IF_ERROR(CheckChunk(header, payload_bytes));
  const auto known = chunks_.find(header.chunk_seq);
  if (known != chunks_.end()) {
    if (!SameChunk(known->second.header, header)) {
      return Refuse(absl::StrCat("chunk ", header.chunk_seq, " is another one than before"));
    }
    if (known->second.state != Coverage::kNone) {
      if (known->second.state == Coverage::kDone) Emit(out, Kind::kSendAck, header.chunk_seq);
      return absl::AlreadyExistsError(absl::StrCat("chunk ", header.chunk_seq, " again"));
    }
  }
  KVF_RETURN_IF_ERROR(CheckUncovered(header));
  if (landing_ >= spec_.credits) {
    return absl::ResourceExhaustedError(absl::StrCat("transfer ", spec_.id.ToHex(), ": chunk ",
                                                     header.chunk_seq, " beyond its ",
                                                     spec_.credits, " credits"));
  }
  peer_ = from;
  if (state_ == ReceiverState::kReserved) state_ = ReceiverState::kReceiving;
  Chunk& chunk = chunks_[header.chunk_seq];
  chunk.header = header;
  chunk.state = Coverage::kLanding;
  Cover(header, Coverage::kLanding);
  ++landing_;
  last_progress_ = now;
  return absl::OkStatus();
}

bool BlockReceiver::Wants(std::uint32_t chunk_seq) const {
  const auto chunk = chunks_.find(chunk_seq);
  return receiving() && chunk != chunks_.end() && chunk->second.state == Coverage::kLanding;
}

absl::Status BlockReceiver::OnLanded(std::uint32_t chunk_seq, const absl::Status& status,
                                     MonoTime now, ReceiverActions& out) {
  const auto entry = chunks_.find(chunk_seq);
  if (entry == chunks_.end() || entry->second.state != Coverage::kLanding) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer ", spec_.id.ToHex(), ": chunk ", chunk_seq, " is not landing"));
  }
  Chunk& chunk = entry->second;
  --landing_;
  const bool good = status.ok() && receiving();
  chunk.state = good ? Coverage::kDone : Coverage::kNone;
  Cover(chunk.header, chunk.state);
  if (state_ == ReceiverState::kQuarantined && landing_ == 0) {
    Free(out);
    return absl::OkStatus();
  }
  if (!receiving()) return absl::OkStatus();
  if (good) {
    last_progress_ = now;
    ++chunks_done_;
    bytes_done_ += chunk.header.payload_bytes;
    Emit(out, Kind::kFill, chunk_seq);
    Emit(out, Kind::kSendAck, chunk_seq);
    AdoptWhenComplete(now, out);
    return absl::OkStatus();
  }
  if (!absl::IsDataLoss(status)) return absl::OkStatus();  // it comes again, or the peer is lost
  ++bad_chunks_;
  if (++chunk.bad > limits_.max_resends) {
    Fail(absl::DataLossError(absl::StrCat("transfer ", spec_.id.ToHex(), ": chunk ", chunk_seq,
                                          " was bad ", chunk.bad, " times: ", status.message())),
         now, out);
  } else {
    Emit(out, Kind::kSendNack, chunk_seq, status);
  }
  return absl::OkStatus();
}

absl::Status BlockReceiver::OnMessage(PeerHandle from, const ControlMessage& message, MonoTime now,
                                      ReceiverActions& out) {
  if (message.transfer_id != spec_.id || message.epoch != spec_.epoch) {
    return Refuse(absl::StrCat("message of transfer ", message.transfer_id.ToHex(), " epoch ",
                               static_cast<std::uint32_t>(message.epoch)));
  }
  if (peer_.has_value() && *peer_ != from) return Refuse("message of another sender");
  switch (message.type) {
    case transport::MessageType::kCommit:
      if (state_ == ReceiverState::kReserved) peer_ = from;
      return OnCommit(message, now, out);
    case transport::MessageType::kAbort:
      if (state_ == ReceiverState::kReserved) peer_ = from;
      OnPeerAbort(message, out);
      return absl::OkStatus();
    case transport::MessageType::kAbortAck:
      return OnAbortAck(out);
    default:
      return Refuse(
          absl::StrCat("message type ", static_cast<int>(message.type), " from a sender"));
  }
}

absl::Status BlockReceiver::OnCommit(const ControlMessage& message, MonoTime now,
                                     ReceiverActions& out) {
  if (adopted_) {
    Emit(out, Kind::kSendAdopted);
    return absl::OkStatus();
  }
  if (!receiving()) {
    if (state_ == ReceiverState::kFencing) Emit(out, Kind::kSendAbort, 0, cause_);
    return absl::AbortedError(absl::StrCat("transfer ", spec_.id.ToHex(), " is dead"));
  }
  if (committed_) {
    const bool same = message.chunks == commit_.chunks &&
                      message.payload_bytes == commit_.payload_bytes &&
                      message.first_token == commit_.first_token;
    return same ? absl::OkStatus() : Refuse("a second COMMIT that says something else");
  }
  if (message.first_token < 0 || message.first_token >= spec_.vocabulary) {
    Fail(absl::DataLossError(absl::StrCat("COMMIT with first token ", message.first_token,
                                          " outside the vocabulary of ", spec_.vocabulary)),
         now, out);
    return absl::OkStatus();
  }
  const std::uint32_t seen = chunks_.empty() ? 0 : chunks_.rbegin()->first + 1;
  if (message.chunks < seen || message.chunks > units_total_ ||
      message.payload_bytes != bytes_total_) {
    Fail(absl::DataLossError(absl::StrCat(
             "COMMIT of ", message.chunks, " chunks and ", message.payload_bytes, " bytes; chunk ",
             seen, " minus 1 was seen and ", bytes_total_, " bytes are due")),
         now, out);
    return absl::OkStatus();
  }
  committed_ = true;
  commit_ = message;
  state_ = ReceiverState::kVerifying;
  last_progress_ = now;
  AdoptWhenComplete(now, out);
  return absl::OkStatus();
}

void BlockReceiver::AdoptWhenComplete(MonoTime now, ReceiverActions& out) {
  if (state_ != ReceiverState::kVerifying || chunks_done_ < commit_.chunks) return;
  if (units_done_ != units_total_ || bytes_done_ != bytes_total_) {
    Fail(absl::DataLossError(absl::StrCat("all ", chunks_done_, " chunks are here with ",
                                          bytes_done_, " of ", bytes_total_, " bytes")),
         now, out);
    return;
  }
  adopted_ = true;
  state_ = ReceiverState::kAdopted;
  Emit(out, Kind::kPublish);
  Emit(out, Kind::kSendAdopted);
  if (run_open_) {
    state_ = ReceiverState::kRunning;
    Emit(out, Kind::kStart);
  }
}

absl::Status BlockReceiver::OnRunOpened(MonoTime now, ReceiverActions& out) {
  if (run_open_) {
    return absl::AlreadyExistsError(
        absl::StrCat("transfer ", spec_.id.ToHex(), ": Run is open already"));
  }
  if (!receiving() && state_ != ReceiverState::kAdopted) {
    return absl::AbortedError(
        absl::StrCat("transfer ", spec_.id.ToHex(), " has failed: ", cause_.message()));
  }
  run_open_ = true;
  last_progress_ = now;
  if (state_ == ReceiverState::kAdopted) {
    state_ = ReceiverState::kRunning;
    Emit(out, Kind::kStart);
  }
  return absl::OkStatus();
}

void BlockReceiver::Release(const absl::Status& why, MonoTime now, ReceiverActions& out) {
  Fail(why.ok() ? absl::UnknownError("released without a reason") : why, now, out);
}

absl::Status BlockReceiver::OnFinished(ReceiverActions& out) {
  if (state_ != ReceiverState::kRunning) {
    return absl::FailedPreconditionError(absl::StrCat(
        "transfer ", spec_.id.ToHex(), ": finished in state ", ToAbsl(StateName(state_))));
  }
  Free(out);
  return absl::OkStatus();
}

void BlockReceiver::Fail(const absl::Status& why, MonoTime now, ReceiverActions& out) {
  if (!cause_.ok() || state_ == ReceiverState::kFreed) return;
  cause_ = why;
  Emit(out, Kind::kReport, 0, cause_);
  if (state_ == ReceiverState::kRunning) return;
  if (state_ == ReceiverState::kAdopted || !peer_.has_value()) {
    Free(out);  // nobody writes: everything has arrived, or nobody has begun
    return;
  }
  state_ = ReceiverState::kFencing;
  abort_interval_ = limits_.abort_interval;
  abort_deadline_ = now + abort_interval_;
  abort_limit_ = now + limits_.progress_limit;
  Emit(out, Kind::kQuarantine);
  Emit(out, Kind::kSendAbort, 0, cause_);
}

void BlockReceiver::OnPeerAbort(const ControlMessage& message, ReceiverActions& out) {
  switch (state_) {
    case ReceiverState::kAdopted:
    case ReceiverState::kRunning:
    case ReceiverState::kFreed:
      Emit(out, Kind::kSendAbortAck);  // it crossed our ADOPTED; what is adopted stands
      return;
    case ReceiverState::kFencing:
    case ReceiverState::kQuarantined:
      break;
    default:
      cause_ = absl::Status(CauseCode(message.cause),
                            absl::StrCat("transfer ", spec_.id.ToHex(), ": aborted by the sender"));
      Emit(out, Kind::kReport, 0, cause_);
      Emit(out, Kind::kQuarantine);
  }
  // The sender has nothing in flight when it says so; what it had begun may still be landing.
  abort_ack_owed_ = true;
  Settle(out);
}

absl::Status BlockReceiver::OnAbortAck(ReceiverActions& out) {
  if (state_ == ReceiverState::kQuarantined || state_ == ReceiverState::kFreed) {
    return absl::OkStatus();
  }
  if (state_ != ReceiverState::kFencing) return Refuse("ABORT_ACK without ABORT");
  Settle(out);
  return absl::OkStatus();
}

void BlockReceiver::OnPeerLost(PeerHandle peer, const absl::Status& why, MonoTime now,
                               ReceiverActions& out) {
  if (!peer_.has_value() || *peer_ != peer) return;
  if (receiving()) {
    cause_ = absl::UnavailableError(
        absl::StrCat("transfer ", spec_.id.ToHex(), ": prefill worker lost: ", why.message()));
    Emit(out, Kind::kReport, 0, cause_);
    Emit(out, Kind::kQuarantine);
    Settle(out);
  } else if (state_ == ReceiverState::kFencing || state_ == ReceiverState::kQuarantined) {
    abort_ack_owed_ = false;
    Settle(out);
  }
  last_progress_ = now;
}

// The sender writes no more: free as soon as nothing is landing.
void BlockReceiver::Settle(ReceiverActions& out) {
  state_ = ReceiverState::kQuarantined;
  abort_deadline_ = abort_limit_ = absl::InfiniteDuration();
  if (landing_ == 0) Free(out);
}

void BlockReceiver::Free(ReceiverActions& out) {
  state_ = ReceiverState::kFreed;
  if (std::exchange(abort_ack_owed_, false)) Emit(out, Kind::kSendAbortAck);
  Emit(out, Kind::kFreed);
}

MonoTime BlockReceiver::next_deadline() const {
  switch (state_) {
    case ReceiverState::kReserved:
    case ReceiverState::kAdopted:
      return last_progress_ + limits_.lease;
    case ReceiverState::kReceiving:
      return last_progress_ + (landing_ > 0 ? limits_.progress_limit : limits_.lease);
    case ReceiverState::kVerifying:
      return last_progress_ + limits_.progress_limit;
    case ReceiverState::kFencing:
      return std::min(abort_deadline_, abort_limit_);
    default:
      return absl::InfiniteDuration();  // the engine's, or the transport's OnPayload
  }
}

void BlockReceiver::OnDeadline(MonoTime now, ReceiverActions& out) {
  if (now < next_deadline()) return;
  if (state_ != ReceiverState::kFencing) {
    const absl::Duration silent = now - last_progress_;
    const bool waits_for_run =
        state_ == ReceiverState::kAdopted || (state_ == ReceiverState::kReserved && !run_open_);
    Fail(absl::AbortedError(absl::StrCat("transfer ", spec_.id.ToHex(), ": ",
                                         waits_for_run ? "Run was not opened" : "nothing arrived",
                                         " for ", absl::FormatDuration(silent), " in state ",
                                         ToAbsl(StateName(state_)), ", ", bytes_done_, " of ",
                                         bytes_total_, " bytes are here")),
         now, out);
    return;
  }
  if (now >= abort_limit_) {
    abort_deadline_ = abort_limit_ = absl::InfiniteDuration();
    Emit(out, Kind::kDisconnect);  // its OnPeerLost ends the fence
    return;
  }
  abort_interval_ *= 2;
  abort_deadline_ = now + abort_interval_;
  Emit(out, Kind::kSendAbort, 0, cause_);
}

}  // namespace kvferry::decode
