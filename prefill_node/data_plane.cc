#include "prefill_node/data_plane.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::prefill {

using transport::PeerHandle;

SendSlot& SendSlot::operator=(SendSlot&& other) noexcept {
  std::swap(owner_, other.owner_);
  std::swap(index_, other.index_);
  return *this;
}

SendSlot::~SendSlot() {
  if (owner_ != nullptr) owner_->ReturnSlot(index_);
}

std::span<std::byte> SendSlot::bytes() const { return owner_->rings_->bytes(index_); }

absl::StatusOr<std::unique_ptr<DataPlane>> DataPlane::Create(const DataPlaneOptions& options,
                                                             const TransportFactory& factory,
                                                             const Clock& clock, Metrics& metrics) {
  KVF_ASSIGN_OR_RETURN(ChunkDump dump, ChunkDump::Create(options.dump_folder));
  std::unique_ptr<DataPlane> plane(new DataPlane(options, std::move(dump), clock, metrics));
  KVF_ASSIGN_OR_RETURN(plane->transport_, factory(options.incarnation, plane.get(), clock));
  KVF_RETURN_IF_ERROR(plane->MakeRings());
  return plane;
}

absl::Status DataPlane::MakeRings() {
  for (const transport::Path& path : transport_->paths()) {
    if (path.memory != transport::MemoryKind::kHost && !options_.dump_folder.empty()) {
      return absl::InvalidArgumentError(
          "dump_folder: chunks in device memory cannot be dumped; set transport.memory: \"host\"");
    }
  }
  KVF_ASSIGN_OR_RETURN(rings_,
                       transport::SlotRings::Create(*transport_, {.name = "send slots",
                                                                  .slot_bytes = options_.slot_bytes,
                                                                  .slots = options_.slots}));
  absl::MutexLock lock(&mutex_);
  free_slots_ = transport::FreeSlots(*rings_);
  return absl::OkStatus();
}

DataPlane::DataPlane(const DataPlaneOptions& options, ChunkDump dump, const Clock& clock,
                     Metrics& metrics)
    : options_(options),
      dump_(std::move(dump)),
      clock_(clock),
      chunks_(metrics.GetCounter("kvferry_prefill_chunks_total", "Chunks sent, resends included")),
      resent_chunks_(metrics.GetCounter("kvferry_prefill_resent_chunks_total",
                                        "Chunks sent again after a NACK or silence")),
      payload_bytes_(metrics.GetCounter("kvferry_prefill_payload_bytes_total",
                                        "Payload bytes sent, resends included")),
      refused_messages_(metrics.GetCounter("kvferry_prefill_refused_messages_total",
                                           "Data-plane messages that were not believed")),
      adopted_(metrics.GetCounter("kvferry_prefill_transfers_total", "Transfers that ended",
                                  {{"result", "adopted"}})),
      failed_(metrics.GetCounter("kvferry_prefill_transfers_total", "Transfers that ended",
                                 {{"result", "failed"}})) {}

DataPlane::~DataPlane() { Stop(); }

void DataPlane::Stop() {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return;
    stopped_ = true;
    std::vector<TransferId> ids;
    for (const auto& [id, transfer] : transfers_) ids.push_back(id);
    for (const TransferId& id : ids) {
      Transfer* transfer = Find(id);
      SenderActions actions;
      transfer->sender.Abort(absl::CancelledError("the prefill worker stops"), clock_.Now(),
                             actions);
      Perform(*transfer, actions, outbox);
    }
  }
  if (transport_ != nullptr) {
    Deliver(std::move(outbox));
    transport_->Stop();
  }
}

absl::Status DataPlane::AddPeer(const DecodePeer& peer) {
  KVF_ASSIGN_OR_RETURN(const transport::Path path, transport_->PathTo(peer.data_address));
  // Outside the mutex: the transport may wait for its progress thread, which may wait for us.
  KVF_ASSIGN_OR_RETURN(
      const PeerHandle handle,
      transport_->Connect(peer.data_address, static_cast<std::uint64_t>(peer.incarnation),
                          peer.name));
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    if (lost_early_.erase(static_cast<std::uint64_t>(handle)) > 0) {
      return absl::UnavailableError(
          absl::StrCat("decode worker ", peer.name, ": connection lost as soon as it was made"));
    }
    for (Peer& old : peers_) {
      if (old.replaced || old.info.incarnation != peer.incarnation) continue;
      old.replaced = true;
      outbox.disconnects.push_back(old.handle);
    }
    peers_.push_back({.info = peer, .handle = handle, .path = path});
  }
  Deliver(std::move(outbox));
  Log(LogLevel::kInfo, "peer_connected",
      {{"peer", peer.name},
       {"incarnation", absl::StrCat(absl::Hex(static_cast<std::uint64_t>(peer.incarnation)))},
       {"transport", path.label}});
  return absl::OkStatus();
}

bool DataPlane::HasPeer(Incarnation peer) const {
  absl::MutexLock lock(&mutex_);
  return FindPeer(peer) != nullptr;
}

bool DataPlane::SendsFromDevice(Incarnation incarnation) const {
  absl::MutexLock lock(&mutex_);
  const Peer* peer = FindPeer(incarnation);
  return peer != nullptr && peer->path.memory == transport::MemoryKind::kDevice;
}

const DataPlane::Peer* DataPlane::FindPeer(Incarnation incarnation) const {
  for (const Peer& peer : peers_) {
    if (!peer.replaced && peer.info.incarnation == incarnation) return &peer;
  }
  return nullptr;
}

absl::Status DataPlane::OpenTransfer(const TransferOptions& options) {
  absl::MutexLock lock(&mutex_);
  if (stopped_) return absl::UnavailableError("the prefill worker stops");
  const Peer* peer = FindPeer(options.decode);
  if (peer == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("transfer ", options.id.ToHex(), ": decode worker ",
                     absl::Hex(static_cast<std::uint64_t>(options.decode)), " is not connected"));
  }
  if (transfers_.contains(options.id)) {
    return absl::AlreadyExistsError(absl::StrCat("transfer ", options.id.ToHex(), " runs already"));
  }
  auto transfer = std::make_unique<Transfer>(options, options_.limits);
  KVF_RETURN_IF_ERROR(transfer->sender.Grant(options.credits));
  transfer->peer = *peer;
  transfer->opened = clock_.Now();
  transfers_[options.id] = std::move(transfer);
  return absl::OkStatus();
}

absl::StatusOr<SendSlot> DataPlane::AcquireSlot(const TransferId& id) {
  absl::MutexLock lock(&mutex_);
  const auto live = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Transfer* transfer = Find(id);
    return transfer != nullptr && transfer->sender.cause().ok();
  };
  const auto wake = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !live() || free_slots_.any(Find(id)->peer.path.memory);
  };
  mutex_.Await(absl::Condition(&wake));
  if (!live()) {
    const Transfer* transfer = Find(id);
    if (transfer != nullptr) return transfer->sender.cause();
    return absl::AbortedError(absl::StrCat("transfer ", id.ToHex(), " is over"));
  }
  return SendSlot(this, *free_slots_.Take(Find(id)->peer.path.memory));
}

void DataPlane::ReturnSlot(std::uint32_t slot) {
  absl::MutexLock lock(&mutex_);
  free_slots_.Return(slot);
}

std::vector<std::string> DataPlane::labels() const {
  std::vector<std::string> labels;
  for (const transport::Path& path : transport_->paths()) labels.push_back(path.label);
  return labels;
}

absl::Status DataPlane::SendChunk(const TransferId& id, transport::ChunkHeader header,
                                  SendSlot slot) {
  if (header.payload_bytes > options_.slot_bytes) {
    return absl::InternalError(absl::StrCat("chunk of ", header.payload_bytes,
                                            " bytes in a slot of ", options_.slot_bytes));
  }
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) {
      return absl::AbortedError(absl::StrCat("transfer ", id.ToHex(), " is over"));
    }
    header.transfer_id = id;
    header.sender_incarnation = options_.incarnation;
    header.epoch = transfer->options.epoch;
    header.chunk_seq = transfer->sender.chunks();
    header.slot = slot.index_;
    SenderActions actions;
    KVF_RETURN_IF_ERROR(
        transfer->sender.AddChunk(header.payload_bytes, clock_.Now(), actions).status());
    SentChunk& chunk = transfer->chunks[header.chunk_seq];
    chunk.slot = slot.index_;
    chunk.payload_bytes = header.payload_bytes;
    transport::EncodeChunkHeader(header, transfer->peer.info.key, chunk.header);
    // Under the mutex: once it is released the chunk may be sent, acknowledged and its slot reused.
    dump_.Write(id, header.chunk_seq, chunk.header, slot.bytes().first(header.payload_bytes));
    slot.owner_ = nullptr;  // the transfer's now
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
  return absl::OkStatus();
}

absl::Status DataPlane::Commit(const TransferId& id, std::int32_t first_token) {
  Outbox outbox;
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) {
      return absl::AbortedError(absl::StrCat("transfer ", id.ToHex(), " is over"));
    }
    SenderActions actions;
    status = transfer->sender.Commit(first_token, clock_.Now(), actions);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
  return status;
}

Shipment DataPlane::ShipmentOf(const Transfer& transfer) {
  return {.transport = transfer.peer.path.label,
          .chunks = transfer.sender.posted_chunks(),
          .resent_chunks = transfer.sender.resent_chunks(),
          .payload_bytes = transfer.sender.posted_bytes()};
}

Shipment DataPlane::Shipped(const TransferId& id) const {
  absl::MutexLock lock(&mutex_);
  const auto entry = transfers_.find(id);
  return entry == transfers_.end() ? Shipment() : ShipmentOf(*entry->second);
}

void DataPlane::Abort(const TransferId& id, const absl::Status& why) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) return;
    SenderActions actions;
    transfer->sender.Abort(why, clock_.Now(), actions);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

std::vector<TransferSnapshot> DataPlane::Transfers() const {
  absl::MutexLock lock(&mutex_);
  std::vector<TransferSnapshot> snapshots;
  for (const auto& [id, transfer] : transfers_) {
    snapshots.push_back({.id = id,
                         .epoch = transfer->options.epoch,
                         .state = StateName(transfer->sender.state()),
                         .peer = transfer->peer.info.name,
                         .bytes_done = transfer->sender.acked_bytes(),
                         .bytes_total = transfer->options.total_bytes,
                         .age = clock_.Now() - transfer->opened});
  }
  return snapshots;
}

std::uint32_t DataPlane::free_slots() const {
  absl::MutexLock lock(&mutex_);
  return free_slots_.count();
}

bool DataPlane::WaitIdle(absl::Duration limit) const {
  absl::MutexLock lock(&mutex_);
  const auto idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return transfers_.empty(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), limit);
}

DataPlane::Transfer* DataPlane::Find(const TransferId& id) {
  const auto entry = transfers_.find(id);
  return entry == transfers_.end() ? nullptr : entry->second.get();
}

}  // namespace kvferry::prefill
