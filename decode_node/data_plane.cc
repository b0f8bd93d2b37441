#include "decode_node/data_plane.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace kvferry::decode {

using transport::PeerHandle;

absl::StatusOr<std::unique_ptr<DataPlane>> DataPlane::Create(const DataPlaneOptions& options,
                                                             CacheStore& store,
                                                             const TransportFactory& factory,
                                                             const Clock& clock, Metrics& metrics) {
  std::unique_ptr<DataPlane> plane(new DataPlane(options, store, clock, metrics));
  for (int i = 0; i < options.adopter_threads; ++i)
    plane->adopters_.push_back(std::make_unique<SerialWorker>());
  KVF_ASSIGN_OR_RETURN(plane->transport_, factory(options.incarnation, plane.get(), clock));
  KVF_RETURN_IF_ERROR(plane->MakeRings());
  return plane;
}

absl::Status DataPlane::MakeRings() {
  KVF_ASSIGN_OR_RETURN(rings_,
                       transport::SlotRings::Create(*transport_, {.name = "landing slots",
                                                                  .slot_bytes = options_.slot_bytes,
                                                                  .slots = options_.slots,
                                                                  .least_slots = kMinCredits}));
  const std::span<std::byte> host = rings_->ring(transport::MemoryKind::kHost);
  if (!host.empty()) {
    KVF_ASSIGN_OR_RETURN(pin_, store_.memory().PinLanding(host));
  }
  absl::MutexLock lock(&mutex_);
  free_slots_ = transport::FreeSlots(*rings_);
  landing_.resize(rings_->slots());
  return absl::OkStatus();
}

DataPlane::DataPlane(const DataPlaneOptions& options, CacheStore& store, const Clock& clock,
                     Metrics& metrics)
    : options_(options),
      store_(store),
      clock_(clock),
      chunks_(metrics.GetCounter("kvferry_decode_chunks_total", "Chunks adopted")),
      payload_bytes_(
          metrics.GetCounter("kvferry_decode_payload_bytes_total", "Payload bytes adopted")),
      refused_messages_(metrics.GetCounter("kvferry_decode_refused_messages_total",
                                           "Data-plane messages that were not believed")),
      bad_chunks_(metrics.GetCounter("kvferry_decode_bad_chunks_total",
                                     "Chunks whose checksum did not match")),
      adopted_(metrics.GetCounter("kvferry_decode_transfers_total", "Transfers that ended",
                                  {{"result", "adopted"}})),
      failed_(metrics.GetCounter("kvferry_decode_transfers_total", "Transfers that ended",
                                 {{"result", "failed"}})),
      free_credits_(options.slots) {}

DataPlane::~DataPlane() { Stop(); }

void DataPlane::Stop() {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return;
    stopped_ = draining_ = true;
    std::vector<TransferId> ids;
    for (const auto& [id, transfer] : transfers_) ids.push_back(id);
    for (const TransferId& id : ids) {
      Transfer* transfer = Find(id);
      ReceiverActions actions;
      transfer->receiver.Release(absl::UnavailableError("the decode worker stops"), clock_.Now(),
                                 actions);
      Perform(*transfer, actions, outbox);
    }
  }
  if (transport_ == nullptr) return;
  Deliver(std::move(outbox));
  transport_->Stop();
  for (const std::unique_ptr<SerialWorker>& adopter : adopters_) adopter->Stop();
  // Nobody writes any more: what was still fenced goes.
  absl::MutexLock lock(&mutex_);
  transfers_.clear();
}

absl::Status DataPlane::AddPeer(const PrefillPeer& peer) {
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
          absl::StrCat("prefill worker ", peer.name, ": connection lost as soon as it was made"));
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

Reservation DataPlane::Reserve(const std::string& request_id, const Demand& demand, Epoch epoch,
                               absl::Duration lease) {
  Outbox outbox;
  Reservation reservation;
  {
    absl::MutexLock lock(&mutex_);
    reservation = ReserveLocked(request_id, demand, epoch, lease, outbox);
  }
  Deliver(std::move(outbox));
  return reservation;
}

Reservation DataPlane::ReserveLocked(const std::string& request_id, const Demand& demand,
                                     Epoch epoch, absl::Duration lease, Outbox& outbox) {
  Reservation reservation;
  Admission& admission = reservation.admission;
  if (draining_) {
    admission.status = absl::UnavailableError("the decode worker drains: it takes nothing new");
    return reservation;
  }
  const std::vector<HeldSequence> held = store_.Held();
  admission = Admit(options_.admission, demand,
                    {.free_rows = store_.free_rows(),
                     .free_credits = free_credits_,
                     .held = held,
                     .step_time = options_.step_time()});
  if (!admission.status.ok()) return reservation;
  absl::StatusOr<std::unique_ptr<StoredSequence>> sequence = store_.Reserve(
      static_cast<int>(demand.prompt_tokens), static_cast<int>(demand.max_new_tokens));
  if (!sequence.ok()) {
    admission.status = sequence.status();
    return reservation;
  }
  ReceiverLimits limits = options_.limits;
  if (lease > absl::ZeroDuration()) limits.lease = std::min(lease, limits.lease);
  TransferSpec spec = MakeSpec(demand, epoch, admission.credits);
  reservation.id = spec.id;
  reservation.lease = limits.lease;
  auto transfer = std::make_unique<Transfer>(std::move(spec), limits, clock_.Now());
  transfer->sequence = *std::move(sequence);
  transfer->request_id = request_id;
  transfer->demand = demand;
  transfer->credits = admission.credits;
  free_credits_ -= admission.credits;
  Arm(*transfer, outbox);
  transfers_[reservation.id] = std::move(transfer);
  return reservation;
}

TransferSpec DataPlane::MakeSpec(const Demand& demand, Epoch epoch, std::uint32_t credits) const {
  return {.id = TransferId::Random(),
          .epoch = epoch,
          .codec_hash = store_.codec().Hash(),
          .geometry = store_.geometry(),
          .plan = codec::PlanBlocks(static_cast<int>(demand.prompt_tokens), store_.codec().window),
          .page_bytes = {store_.page_bytes().begin(), store_.page_bytes().end()},
          .slot_bytes = options_.slot_bytes,
          .credits = credits,
          .vocabulary = options_.vocabulary};
}

absl::Status DataPlane::OpenRun(const TransferId& id, Epoch epoch, const Demand& demand,
                                std::shared_ptr<RunListener> listener) {
  Outbox outbox;
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) {
      return absl::AbortedError(absl::StrCat("transfer_id: ", id.ToHex(),
                                             " is not reserved here (any more); reserve again"));
    }
    if (transfer->receiver.spec().epoch != epoch) {
      return absl::InvalidArgumentError(
          absl::StrCat("epoch: ", static_cast<std::uint32_t>(epoch), "; transfer ", id.ToHex(),
                       " has ", static_cast<std::uint32_t>(transfer->receiver.spec().epoch)));
    }
    if (transfer->demand.prompt_tokens != demand.prompt_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("tokens: ", demand.prompt_tokens,
                                                     " tokens; reserved were ",
                                                     transfer->demand.prompt_tokens));
    }
    if (transfer->demand.max_new_tokens < demand.max_new_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("max_new_tokens: ", demand.max_new_tokens,
                                                     "; reserved were ",
                                                     transfer->demand.max_new_tokens));
    }
    ReceiverActions actions;
    status = transfer->receiver.OnRunOpened(clock_.Now(), actions);
    if (status.ok()) transfer->listener = std::move(listener);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
  return status;
}

void DataPlane::Release(const TransferId& id, Epoch epoch, const absl::Status& why) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr || transfer->receiver.spec().epoch != epoch) return;
    ReceiverActions actions;
    transfer->receiver.Release(why, clock_.Now(), actions);
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

void DataPlane::Finish(const TransferId& id) {
  Outbox outbox;
  {
    absl::MutexLock lock(&mutex_);
    Transfer* transfer = Find(id);
    if (transfer == nullptr) return;
    ReceiverActions actions;
    if (absl::Status status = transfer->receiver.OnFinished(actions); !status.ok()) {
      Log(LogLevel::kError, "finish_unexpected", {{"why", status}});
    }
    Perform(*transfer, actions, outbox);
  }
  Deliver(std::move(outbox));
}

void DataPlane::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool DataPlane::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

std::vector<TransferSnapshot> DataPlane::Transfers() const {
  absl::MutexLock lock(&mutex_);
  std::vector<TransferSnapshot> snapshots;
  for (const auto& [id, transfer] : transfers_) {
    const BlockReceiver& receiver = transfer->receiver;
    const Peer* peer = receiver.peer().has_value() ? FindPeer(*receiver.peer()) : nullptr;
    snapshots.push_back({.id = id,
                         .epoch = receiver.spec().epoch,
                         .request_id = transfer->request_id,
                         .state = StateName(receiver.state()),
                         .peer = peer == nullptr ? std::string() : peer->info.name,
                         .bytes_done = receiver.bytes_done(),
                         .bytes_total = receiver.bytes_total(),
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

const DataPlane::Peer* DataPlane::FindPeer(PeerHandle handle) const {
  for (const Peer& peer : peers_) {
    if (peer.handle == handle) return &peer;
  }
  return nullptr;
}

DataPlane::Transfer* DataPlane::Find(const TransferId& id) {
  const auto entry = transfers_.find(id);
  return entry == transfers_.end() ? nullptr : entry->second.get();
}

std::vector<std::string> DataPlane::labels() const {
  std::vector<std::string> labels;
  for (const transport::Path& path : transport_->paths()) labels.push_back(path.label);
  return labels;
}

}  // namespace kvferry::decode
