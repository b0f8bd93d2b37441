// What the transport and the receivers make the data plane do. Everything is decided under the
// mutex and collected in an Outbox; Deliver hands it to the transport and the listeners afterwards.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "decode_node/data_plane.h"

namespace kvferry::decode {
namespace {

// Late messages are told from unknown ones for as long as so many transfers take.
constexpr std::size_t kTombstones = 4096;

}  // namespace

using transport::ControlMessage;
using transport::MessageType;
using transport::PeerHandle;

void DataPlane::OnMessage(PeerHandle from, MessageType type, std::span<const std::byte> header) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    const Peer* peer = FindPeer(from);
    absl::Status status = absl::NotFoundError("a message of an unknown peer");
    if (peer != nullptr) {
      absl::StatusOr<ControlMessage> message =
          transport::DecodeControl(header, type, peer->info.key);
      if (message.ok() && message->sender_incarnation != peer->info.incarnation) {
        message = absl::DataLossError("a message of another incarnation");
      }
      status = message.ok() ? HandleMessage(*peer, *message, outbox) : message.status();
    }
    if (!status.ok()) {
      refused_messages_.Add();
      Log(LogLevel::kDebug, "message_refused", {{"why", status}});
    }
  }
  Deliver(std::move(outbox));
}

absl::Status DataPlane::HandleMessage(const Peer& from, const ControlMessage& message,
                                      Outbox& outbox) {
  Transfer* transfer = Find(message.transfer_id);
  if (transfer == nullptr) {
    return AnswerUnknown(from, message.type, message.transfer_id, message.epoch, outbox);
  }
  ReceiverActions actions;
  absl::Status status = transfer->receiver.OnMessage(from.handle, message, clock_.Now(), actions);
  Perform(*transfer, actions, outbox);
  return status;
}

// The sender of a transfer that is over, or never was, learns so.
absl::Status DataPlane::AnswerUnknown(const Peer& from, MessageType type, const TransferId& id,
                                      Epoch epoch, Outbox& outbox) {
  if (type == MessageType::kAbortAck) return absl::OkStatus();  // late: it is over
  const auto dead = tombstones_.find(id);
  const bool adopted =
      dead != tombstones_.end() && dead->second.adopted && dead->second.epoch == epoch;
  ControlMessage answer{.type = MessageType::kAbort,
                        .transfer_id = id,
                        .epoch = epoch,
                        .cause = static_cast<std::uint32_t>(absl::StatusCode::kAborted)};
  if (type == MessageType::kAbort) {
    answer.type = MessageType::kAbortAck;
    answer.cause = 0;
  } else if (adopted) {
    answer.type = MessageType::kAdopted;
    answer.cause = 0;
  }
  SendControl(from, answer, outbox);
  if (type == MessageType::kAbort || adopted) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("transfer ", id.ToHex(), " of ", from.info.name,
                                         dead == tombstones_.end() ? " is unknown" : " is dead"));
}

transport::Landing DataPlane::OnIncoming(PeerHandle from, MessageType type,
                                         std::span<const std::byte> header,
                                         std::size_t payload_bytes) {
  Outbox outbox;
  transport::Landing landing;
  {
    absl::MutexLock lock(&mutex_);
    absl::StatusOr<std::uint32_t> slot = absl::InvalidArgumentError("a payload without a chunk");
    if (type == MessageType::kChunk) slot = AcceptChunk(from, header, payload_bytes, outbox);
    if (slot.ok()) {
      landing = {.slot = rings_->bytes(*slot).first(payload_bytes), .cookie = *slot};
    } else if (!absl::IsAlreadyExists(slot.status())) {
      refused_messages_.Add();
      Log(LogLevel::kDebug, "chunk_refused", {{"why", slot.status()}});
    }
  }
  Deliver(std::move(outbox));
  return landing;
}

absl::StatusOr<std::uint32_t> DataPlane::AcceptChunk(PeerHandle from,
                                                     std::span<const std::byte> bytes,
                                                     std::size_t payload_bytes, Outbox& outbox) {
  const Peer* peer = FindPeer(from);
  if (peer == nullptr) return absl::NotFoundError("a chunk of an unknown peer");
  KVF_ASSIGN_OR_RETURN(const transport::ChunkHeader header,
                       transport::DecodeChunkHeader(bytes, peer->info.key));
  if (header.sender_incarnation != peer->info.incarnation) {
    return absl::DataLossError("a chunk of another incarnation");
  }
  Transfer* transfer = Find(header.transfer_id);
  if (transfer == nullptr) {
    KVF_RETURN_IF_ERROR(
        AnswerUnknown(*peer, MessageType::kChunk, header.transfer_id, header.epoch, outbox));
    return absl::AlreadyExistsError("a chunk of a transfer that was adopted");
  }
  if (!free_slots_.any(peer->path.memory)) {
    return absl::InternalError("no landing slot is free although all are promised");
  }
  ReceiverActions actions;
  absl::Status status =
      transfer->receiver.OnChunk(from, header, payload_bytes, clock_.Now(), actions);
  Perform(*transfer, actions, outbox);
  KVF_RETURN_IF_ERROR(status);
  transfer->transport = peer->path.label;
  const std::uint32_t slot = *free_slots_.Take(peer->path.memory);
  landing_[slot] = header;
  return slot;
}

void DataPlane::OnPayload(PeerHandle, std::uint64_t cookie, const absl::Status& status) {
  const auto slot = static_cast<std::uint32_t>(cookie);
  if (adopters_.empty()) {
    Adopt(slot, status);
    return;
  }
  std::uint32_t chunk_seq = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (slot < landing_.size()) chunk_seq = landing_[slot].chunk_seq;
  }
  adopters_[chunk_seq % adopters_.size()]->Push([this, slot, status] { Adopt(slot, status); });
}

void DataPlane::Adopt(std::uint32_t slot, const absl::Status& status) {
  transport::ChunkHeader header;
  StoredSequence* sequence = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (!free_slots_.taken(slot)) {
      Log(LogLevel::kError, "payload_unexpected", {{"slot", slot}});
      return;
    }
    header = landing_[slot];
    // A transfer with a landing chunk is not forgotten, and its sequence not taken from it.
    Transfer* transfer = Find(header.transfer_id);
    if (transfer != nullptr && transfer->receiver.Wants(header.chunk_seq)) {
      sequence = transfer->sequence.get();
    }
  }
  absl::Status checked = status;
  if (status.ok() && sequence != nullptr) {
    checked = sequence->CopyChunk(header, rings_->bytes(slot).first(header.payload_bytes));
    if (options_.watch != nullptr && !absl::IsDataLoss(checked)) {
      checked = options_.watch->Explain(checked);
    }
  }
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(header.transfer_id);
    if (absl::IsDataLoss(checked)) {
      bad_chunks_.Add();
      Log(LogLevel::kWarning, "chunk_bad", {{"why", checked}});
    }
    ReceiverActions actions;
    if (transfer != nullptr) {
      if (absl::Status unexpected =
              transfer->receiver.OnLanded(header.chunk_seq, checked, clock_.Now(), actions);
          !unexpected.ok()) {
        Log(LogLevel::kError, "payload_unexpected", {{"why", unexpected}});
      }
    }
    // Free before the sender can learn of it: it may then send into every slot of its credits.
    free_slots_.Return(slot);
    if (transfer != nullptr) Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

void DataPlane::OnPeerLost(PeerHandle handle, const absl::Status& why) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    std::vector<TransferId> ids;
    for (const auto& [id, transfer] : transfers_) {
      if (transfer->receiver.peer() == handle) ids.push_back(id);
    }
    const auto peer = std::find_if(peers_.begin(), peers_.end(),
                                   [&](const Peer& p) { return p.handle == handle; });
    if (peer != peers_.end()) {
      Log(LogLevel::kWarning, "peer_lost",
          {{"peer", peer->info.name}, {"transfers", ids.size()}, {"why", why}});
      peers_.erase(peer);
    } else if (!stopped_) {
      lost_early_.insert(static_cast<std::uint64_t>(handle));
    }
    for (const TransferId& id : ids) {
      Transfer* transfer = Find(id);
      ReceiverActions actions;
      transfer->receiver.OnPeerLost(handle, why, clock_.Now(), actions);
      Perform(*transfer, actions, outbox);
    }
  }
  Deliver(std::move(outbox));
}

void DataPlane::OnTimer(const TransferId& id, std::uint64_t timer) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr || transfer->timer != timer) return;
    transfer->timer_at = absl::InfiniteDuration();
    ReceiverActions actions;
    transfer->receiver.OnDeadline(clock_.Now(), actions);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

void DataPlane::Perform(Transfer& transfer, const ReceiverActions& actions, Outbox& outbox) {
  for (const ReceiverAction& action : actions) {
    switch (action.kind) {
      case ReceiverAction::Kind::kFill:
        Fill(transfer, action.chunk_seq);
        break;
      case ReceiverAction::Kind::kSendAck:
        SendAbout(transfer, MessageType::kAck, action.chunk_seq, absl::StatusCode::kOk, outbox);
        break;
      case ReceiverAction::Kind::kSendNack:
        SendAbout(transfer, MessageType::kNack, action.chunk_seq, action.status.code(), outbox);
        break;
      case ReceiverAction::Kind::kPublish:
        Publish(transfer);
        break;
      case ReceiverAction::Kind::kSendAdopted:
        SendAbout(transfer, MessageType::kAdopted, 0, absl::StatusCode::kOk, outbox);
        break;
      case ReceiverAction::Kind::kStart:
        outbox.starts.push_back({.listener = transfer.listener,
                                 .sequence = {.cache = std::move(transfer.sequence),
                                              .transport = transfer.transport,
                                              .first_token = transfer.receiver.first_token(),
                                              .payload_bytes = transfer.receiver.bytes_done(),
                                              .chunks = transfer.receiver.chunks_done(),
                                              .bad_chunks = transfer.receiver.bad_chunks()}});
        break;
      case ReceiverAction::Kind::kQuarantine:
        if (absl::Status status = transfer.sequence->Quarantine(); !status.ok()) {
          Log(LogLevel::kError, "quarantine_failed", {{"why", status}});
        }
        break;
      case ReceiverAction::Kind::kSendAbort:
        SendAbout(transfer, MessageType::kAbort, 0, action.status.code(), outbox);
        break;
      case ReceiverAction::Kind::kSendAbortAck:
        SendAbout(transfer, MessageType::kAbortAck, 0, absl::StatusCode::kOk, outbox);
        break;
      case ReceiverAction::Kind::kDisconnect:
        outbox.disconnects.push_back(*transfer.receiver.peer());
        break;
      case ReceiverAction::Kind::kReport:
        Report(transfer, action.status, outbox);
        break;
      case ReceiverAction::Kind::kFreed:
        Bury(transfer);
        return;
    }
  }
  Arm(transfer, outbox);
}

void DataPlane::Fill(Transfer& transfer, std::uint32_t chunk_seq) {
  const transport::ChunkHeader& header = transfer.receiver.header(chunk_seq);
  chunks_.Add();
  payload_bytes_.Add(header.payload_bytes);
  if (absl::Status status = transfer.sequence->FillChunk(header); !status.ok()) {
    Log(LogLevel::kError, "fill_failed", {{"why", status}});
  }
}

void DataPlane::Publish(Transfer& transfer) {
  adopted_.Add();
  ReturnCredits(transfer);
  if (absl::Status status = transfer.sequence->Publish(); !status.ok()) {
    Log(LogLevel::kError, "publish_failed", {{"why", status}});
  }
}

void DataPlane::Report(Transfer& transfer, const absl::Status& why, Outbox& outbox) {
  if (!transfer.receiver.adopted()) failed_.Add();
  Log(LogLevel::kInfo, "transfer_ended",
      {{"transfer", transfer.receiver.spec().id.ToHex()},
       {"request", transfer.request_id},
       {"state", ToAbsl(StateName(transfer.receiver.state()))},
       {"why", why}});
  if (transfer.listener != nullptr) outbox.failures.push_back({transfer.listener, why});
}

void DataPlane::Bury(Transfer& transfer) {
  const TransferId id = transfer.receiver.spec().id;
  ReturnCredits(transfer);
  tombstones_[id] = {.epoch = transfer.receiver.spec().epoch,
                     .adopted = transfer.receiver.adopted()};
  tombstone_order_.push_back(id);
  if (tombstone_order_.size() > kTombstones) {
    tombstones_.erase(tombstone_order_.front());
    tombstone_order_.pop_front();
  }
  transfers_.erase(id);
}

void DataPlane::ReturnCredits(Transfer& transfer) {
  free_credits_ += std::exchange(transfer.credits, 0);
}

void DataPlane::SendAbout(const Transfer& transfer, MessageType type, std::uint32_t chunk_seq,
                          absl::StatusCode cause, Outbox& outbox) {
  const BlockReceiver& receiver = transfer.receiver;
  const Peer* peer = receiver.peer().has_value() ? FindPeer(*receiver.peer()) : nullptr;
  if (peer == nullptr) return;  // lost: there is nobody to tell
  SendControl(*peer,
              {.type = type,
               .transfer_id = receiver.spec().id,
               .epoch = receiver.spec().epoch,
               .chunk_seq = chunk_seq,
               .cause = static_cast<std::uint32_t>(cause)},
              outbox);
}

void DataPlane::SendControl(const Peer& peer, ControlMessage message, Outbox& outbox) {
  message.sender_incarnation = options_.incarnation;
  std::vector<std::byte> header(transport::kControlHeaderBytes);
  transport::EncodeControl(message, peer.info.key,
                           std::span<std::byte, transport::kControlHeaderBytes>(header));
  outbox.messages.push_back(
      {.peer = peer.handle, .type = message.type, .header = std::move(header)});
}

void DataPlane::Arm(Transfer& transfer, Outbox& outbox) {
  const MonoTime due = transfer.receiver.next_deadline();
  if (due >= transfer.timer_at) return;  // the timer that runs will look again
  transfer.timer_at = due;
  const std::uint64_t timer = ++transfer.timer;
  outbox.timers.emplace_back(
      std::max(due - clock_.Now(), absl::Milliseconds(1)),
      [this, id = transfer.receiver.spec().id, timer] { OnTimer(id, timer); });
}

void DataPlane::Deliver(Outbox outbox) {
  for (Outgoing& message : outbox.messages) {
    // A lost control message is asked for again, or repeated by its deadline: its completion says
    // nothing new.
    transport_->Send(message.peer, message.type, message.header, {}, [](const absl::Status&) {});
  }
  for (const PeerHandle peer : outbox.disconnects) transport_->Disconnect(peer);
  for (auto& [delay, work] : outbox.timers) transport_->Post(std::move(work), delay);
  for (Start& start : outbox.starts) start.listener->OnAdopted(std::move(start.sequence));
  for (const Failure& failure : outbox.failures) failure.listener->OnFailed(failure.why);
}

}  // namespace kvferry::decode
