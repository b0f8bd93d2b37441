#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/crc32c.h"
#include "common/ids.h"
#include "tests/fakes/wait_limit.h"
#include "transport/loopback/loopback_transport.h"
#include "transport/wire.h"

namespace kvferry::fakes {

// The least that a decode worker does on the data plane: lands chunks, checks and acknowledges
// them, adopts on commit, answers aborts. Keeps what it got. Tells by flags to misbehave.
// Thread: any.
class FakeReceiver final : public transport::MessageSink {
 public:
  struct Behaviour {
    bool silent = false;  // answers nothing
    bool nack = false;    // NACKs every chunk
    bool never_adopt = false;
  };
  struct Received {
    std::map<std::uint32_t, transport::ChunkHeader> headers;  // by chunk_seq
    std::map<std::uint32_t, std::vector<std::byte>> payloads;
    std::uint32_t commit_chunks = 0;
    std::uint64_t commit_bytes = 0;
    std::int32_t first_token = -1;
    bool committed = false, adopted = false, aborted = false;
    std::set<std::uint32_t> landing;  // accepted, payload not there yet
  };

  FakeReceiver(transport::LoopbackNetwork& network, const Clock& clock, int slots = 64,
               std::size_t slot_bytes = std::size_t{1} << 20)
      : slot_bytes_(slot_bytes) {
    transport_ =
        network
            .CreateTransport({.incarnation = static_cast<std::uint64_t>(incarnation)}, this, clock)
            .value();
    region_ = transport_->Allocate(slots * slot_bytes, transport::MemoryKind::kHost).value();
    for (int slot = 0; slot < slots; ++slot) free_.push_back(slot);
  }
  ~FakeReceiver() override { transport_->Stop(); }

  void Connect(std::string_view address, Incarnation sender) {
    const transport::PeerHandle peer =
        transport_->Connect(address, static_cast<std::uint64_t>(sender), "prefill").value();
    absl::MutexLock lock(&mutex_);
    peer_ = peer;
    sender_ = sender;
  }

  // Before the peer's first message.
  void SetKey(const transport::PairKey& pair_key) { key = pair_key; }
  void Behave(Behaviour behaviour) {
    absl::MutexLock lock(&mutex_);
    behaviour_ = behaviour;
  }
  // Sends ABORT of a transfer.
  void Abort(const TransferId& id, Epoch epoch, absl::StatusCode cause) {
    Answer({.type = transport::MessageType::kAbort,
            .transfer_id = id,
            .epoch = epoch,
            .cause = static_cast<std::uint32_t>(cause)});
  }
  Received Get(const TransferId& id) {
    absl::MutexLock lock(&mutex_);
    return transfers_[id];
  }
  // Until `done` says so of the transfer. False: `limit` passed.
  bool Wait(const TransferId& id, const std::function<bool(const Received&)>& done,
            absl::Duration limit = kWaitLimit) {
    absl::MutexLock lock(&mutex_);
    const auto ready = [&] { return done(transfers_[id]); };
    return mutex_.AwaitWithTimeout(absl::Condition(&ready), limit);
  }
  std::set<TransferId> AbortAcks() {
    absl::MutexLock lock(&mutex_);
    return abort_acks_;
  }
  bool WaitAbortAck(const TransferId& id, absl::Duration limit = kWaitLimit) {
    absl::MutexLock lock(&mutex_);
    const auto ready = [&] { return abort_acks_.contains(id); };
    return mutex_.AwaitWithTimeout(absl::Condition(&ready), limit);
  }
  std::string address() const { return transport_->LocalAddress(); }

  const Incarnation incarnation{RandomId64()};
  transport::PairKey key = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

 private:
  using MessageType = transport::MessageType;

  void OnMessage(transport::PeerHandle, MessageType type,
                 std::span<const std::byte> header) override {
    const auto message = transport::DecodeControl(header, type, key);
    if (!message.ok()) return;
    bool answer_abort = false, answer_adopted = false;
    {
      absl::MutexLock lock(&mutex_);
      if (behaviour_.silent) return;
      Received& transfer = transfers_[message->transfer_id];
      if (type == MessageType::kCommit) {
        transfer.committed = true;
        transfer.commit_chunks = message->chunks;
        transfer.commit_bytes = message->payload_bytes;
        transfer.first_token = message->first_token;
        answer_adopted = Adopt(transfer);
      } else if (type == MessageType::kAbort) {
        answer_abort = transfer.aborted = true;
      } else if (type == MessageType::kAbortAck) {
        abort_acks_.insert(message->transfer_id);
      }
    }
    if (answer_abort) Answer(Reply(*message, MessageType::kAbortAck));
    if (answer_adopted) Answer(Reply(*message, MessageType::kAdopted));
  }

  transport::Landing OnIncoming(transport::PeerHandle, MessageType,
                                std::span<const std::byte> bytes,
                                std::size_t payload_bytes) override {
    const auto header = transport::DecodeChunkHeader(bytes, key);
    absl::MutexLock lock(&mutex_);
    if (!header.ok() || payload_bytes != header->payload_bytes || payload_bytes > slot_bytes_ ||
        free_.empty()) {
      return {};
    }
    const int slot = free_.back();
    free_.pop_back();
    pending_[slot] = *header;
    transfers_[header->transfer_id].landing.insert(header->chunk_seq);
    return {.slot = Slot(slot).first(payload_bytes), .cookie = static_cast<std::uint64_t>(slot)};
  }

  void OnPayload(transport::PeerHandle, std::uint64_t cookie, const absl::Status& status) override {
    transport::ControlMessage answer, adopted;
    bool answers = false, adopts = false;
    {
      absl::MutexLock lock(&mutex_);
      const int slot = static_cast<int>(cookie);
      const transport::ChunkHeader header = pending_.at(slot);
      pending_.erase(slot);
      free_.push_back(slot);
      Received& transfer = transfers_[header.transfer_id];
      transfer.landing.erase(header.chunk_seq);
      if (!status.ok() || behaviour_.silent) return;
      const std::span<const std::byte> payload = Slot(slot).first(header.payload_bytes);
      const bool good = Crc32c(payload) == header.payload_check && !behaviour_.nack;
      if (good && !transfer.aborted) {
        transfer.headers[header.chunk_seq] = header;
        transfer.payloads[header.chunk_seq].assign(payload.begin(), payload.end());
      }
      answer = {.type = good ? MessageType::kAck : MessageType::kNack,
                .transfer_id = header.transfer_id,
                .epoch = header.epoch,
                .chunk_seq = header.chunk_seq,
                .cause = static_cast<std::uint32_t>(good ? absl::StatusCode::kOk
                                                         : absl::StatusCode::kDataLoss)};
      answers = true;
      adopts = Adopt(transfer);
      adopted = Reply(answer, MessageType::kAdopted);
    }
    if (answers) Answer(answer);
    if (adopts) Answer(adopted);
  }

  void OnPeerLost(transport::PeerHandle, const absl::Status&) override {}

  bool Adopt(Received& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (behaviour_.never_adopt || !transfer.committed || transfer.aborted ||
        transfer.payloads.size() != transfer.commit_chunks) {
      return false;
    }
    return transfer.adopted = true;
  }
  static transport::ControlMessage Reply(const transport::ControlMessage& to, MessageType type) {
    return {.type = type, .transfer_id = to.transfer_id, .epoch = to.epoch};
  }
  void Answer(transport::ControlMessage message) {
    message.sender_incarnation = incarnation;
    std::array<std::byte, transport::kControlHeaderBytes> header;
    transport::EncodeControl(message, key, header);
    transport::PeerHandle peer;
    {
      absl::MutexLock lock(&mutex_);
      peer = peer_;
    }
    transport_->Send(peer, message.type, header, {}, [](const absl::Status&) {});
  }
  std::span<std::byte> Slot(int slot) {
    return region_->bytes().subspan(slot * slot_bytes_, slot_bytes_);
  }

  const std::size_t slot_bytes_;
  absl::Mutex mutex_;
  Behaviour behaviour_;
  transport::PeerHandle peer_{};
  Incarnation sender_{};
  std::vector<int> free_;
  std::map<int, transport::ChunkHeader> pending_;
  std::map<TransferId, Received> transfers_;
  std::set<TransferId> abort_acks_;
  std::unique_ptr<transport::Transport> transport_;
  std::unique_ptr<transport::Region> region_;
};

}  // namespace kvferry::fakes
