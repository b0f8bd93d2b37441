// What the transport and the senders make the data plane do. Everything is decided under the mutex
// and collected in an Outbox; Deliver hands it to the transport and the callbacks afterwards.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/string_view.h"
#include "prefill_node/data_plane.h"

namespace kvferry::prefill {

using transport::ControlMessage;
using transport::MessageType;
using transport::PeerHandle;

void DataPlane::OnMessage(PeerHandle from, MessageType type, std::span<const std::byte> header) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    const auto peer =
        std::find_if(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.handle == from; });
    absl::Status status = absl::NotFoundError("a message of an unknown peer");
    if (peer != peers_.end()) {
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
    if (message.type != MessageType::kAbort) return absl::OkStatus();  // late: the transfer is over
    // Nothing of it is in flight: the receiver may have its memory back.
    ControlMessage answer = message;
    answer.type = MessageType::kAbortAck;
    answer.sender_incarnation = options_.incarnation;
    answer.cause = 0;
    SendControl(from, answer, outbox);
    return absl::OkStatus();
  }
  if (transfer->peer.handle != from.handle) {
    return absl::InvalidArgumentError(absl::StrCat("transfer ", message.transfer_id.ToHex(),
                                                   ": a message of ", from.info.name,
                                                   ", which does not receive it"));
  }
  SenderActions actions;
  absl::Status status = transfer->sender.OnMessage(message, clock_.Now(), actions);
  Perform(*transfer, actions, outbox);
  return status;
}

transport::Landing DataPlane::OnIncoming(PeerHandle, MessageType, std::span<const std::byte>,
                                         std::size_t) {
  refused_messages_.Add();  // nobody sends payload to a prefill worker
  return {};
}

void DataPlane::OnPayload(PeerHandle, std::uint64_t, const absl::Status&) {}

void DataPlane::OnPeerLost(PeerHandle handle, const absl::Status& why) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    const auto peer = std::find_if(peers_.begin(), peers_.end(),
                                   [&](const Peer& p) { return p.handle == handle; });
    std::vector<TransferId> ids;
    for (const auto& [id, transfer] : transfers_) {
      if (transfer->peer.handle == handle) ids.push_back(id);
    }
    if (peer != peers_.end()) {
      const bool expected = stopped_ || peer->replaced;
      Log(expected ? LogLevel::kDebug : LogLevel::kWarning, "peer_lost",
          {{"peer", peer->info.name}, {"transfers", ids.size()}, {"why", why}});
      peers_.erase(peer);
    } else if (ids.empty() && !stopped_) {
      lost_early_.insert(static_cast<std::uint64_t>(handle));
    }
    for (const TransferId& id : ids) {
      Transfer* transfer = Find(id);
      SenderActions actions;
      transfer->sender.OnPeerLost(why, clock_.Now(), actions);
      Perform(*transfer, actions, outbox);
    }
  }
  Deliver(std::move(outbox));
}

void DataPlane::OnSendDone(const TransferId& id, std::uint32_t chunk_seq,
                           const absl::Status& status) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) return;
    SenderActions actions;
    if (absl::Status unexpected =
            transfer->sender.OnSendDone(chunk_seq, status, clock_.Now(), actions);
        !unexpected.ok()) {
      Log(LogLevel::kError, "send_completion_unexpected", {{"why", unexpected}});
    }
    Perform(*transfer, actions, outbox);
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
    SenderActions actions;
    transfer->sender.OnDeadline(clock_.Now(), actions);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

void DataPlane::Perform(Transfer& transfer, const SenderActions& actions, Outbox& outbox) {
  for (const SenderAction& action : actions) {
    switch (action.kind) {
      case SenderAction::Kind::kSendChunk:
        SendPayload(transfer, action.chunk_seq, outbox);
        break;
      case SenderAction::Kind::kFreeSlot: {
        const auto chunk = transfer.chunks.find(action.chunk_seq);
        free_slots_.Return(chunk->second.slot);
        transfer.chunks.erase(chunk);
        break;
      }
      case SenderAction::Kind::kSendCommit:
        SendAbout(transfer, MessageType::kCommit, absl::StatusCode::kOk, outbox);
        break;
      case SenderAction::Kind::kSendAbort:
        SendAbout(transfer, MessageType::kAbort, action.status.code(), outbox);
        break;
      case SenderAction::Kind::kSendAbortAck:
        SendAbout(transfer, MessageType::kAbortAck, absl::StatusCode::kOk, outbox);
        break;
      case SenderAction::Kind::kDisconnect:
        outbox.disconnects.push_back(transfer.peer.handle);
        break;
      case SenderAction::Kind::kReport:
        Report(transfer, action.status, outbox);
        break;
      case SenderAction::Kind::kClosed:
        // Its slots have all come back and nothing refers to it.
        transfers_.erase(transfer.options.id);
        return;
    }
  }
  Arm(transfer, outbox);
}

void DataPlane::SendPayload(Transfer& transfer, std::uint32_t chunk_seq, Outbox& outbox) {
  const SentChunk& chunk = transfer.chunks.at(chunk_seq);
  chunks_.Add();
  payload_bytes_.Add(chunk.payload_bytes);
  outbox.messages.push_back({.peer = transfer.peer.handle,
                             .type = MessageType::kChunk,
                             .header = {chunk.header.begin(), chunk.header.end()},
                             .payload = rings_->bytes(chunk.slot).first(chunk.payload_bytes),
                             .done = [this, id = transfer.options.id, chunk_seq](
                                         const absl::Status& s) { OnSendDone(id, chunk_seq, s); }});
}

void DataPlane::SendAbout(const Transfer& transfer, MessageType type, absl::StatusCode cause,
                          Outbox& outbox) {
  ControlMessage message{.type = type,
                         .transfer_id = transfer.options.id,
                         .sender_incarnation = options_.incarnation,
                         .epoch = transfer.options.epoch,
                         .cause = static_cast<std::uint32_t>(cause)};
  if (type == MessageType::kCommit) {
    message.chunks = transfer.sender.chunks();
    message.payload_bytes = transfer.sender.payload_bytes();
    message.first_token = transfer.sender.first_token();
  }
  SendControl(transfer.peer, message, outbox);
}

void DataPlane::SendControl(const Peer& peer, const ControlMessage& message, Outbox& outbox) {
  std::vector<std::byte> header(transport::kControlHeaderBytes);
  transport::EncodeControl(message, peer.info.key,
                           std::span<std::byte, transport::kControlHeaderBytes>(header));
  // A lost control message is repeated by its own deadline, so its completion says nothing new.
  outbox.messages.push_back({.peer = peer.handle,
                             .type = message.type,
                             .header = std::move(header),
                             .payload = {},
                             .done = [](const absl::Status&) {}});
}

void DataPlane::Report(const Transfer& transfer, const absl::Status& status, Outbox& outbox) {
  (status.ok() ? adopted_ : failed_).Add();
  resent_chunks_.Add(transfer.sender.resent_chunks());
  TransferResult result{.status = status, .shipment = ShipmentOf(transfer)};
  outbox.calls.push_back(
      [call = transfer.options.on_result, result = std::move(result)] { call(result); });
}

void DataPlane::Arm(Transfer& transfer, Outbox& outbox) {
  const MonoTime due = transfer.sender.next_deadline();
  if (due >= transfer.timer_at) return;  // the timer that runs will look again
  transfer.timer_at = due;
  const std::uint64_t timer = ++transfer.timer;
  outbox.timers.emplace_back(std::max(due - clock_.Now(), absl::Milliseconds(1)),
                             [this, id = transfer.options.id, timer] { OnTimer(id, timer); });
}

void DataPlane::Deliver(Outbox outbox) {
  for (Outgoing& message : outbox.messages) {
    transport_->Send(message.peer, message.type, message.header, message.payload,
                     std::move(message.done));
  }
  for (const PeerHandle peer : outbox.disconnects) transport_->Disconnect(peer);
  for (auto& [delay, work] : outbox.timers) transport_->Post(std::move(work), delay);
  for (auto& call : outbox.calls) call();
}

}  // namespace kvferry::prefill
