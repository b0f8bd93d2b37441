#include "router/registry_service.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "router/convert.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/fingerprint.h"
#include "rpc/status.h"

namespace kvferry::router {

// One Attach stream. What it reads goes to the loop; what it sends is queued. gRPC's share of it
// ends in OnDone; the loop may hold it longer.
class RegistryService::Session final
    : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterCommand>,
      public std::enable_shared_from_this<Session> {
 public:
  Session(RegistryService& service, Loop& loop) : service_(service), loop_(loop) {}

  void Start(const absl::Status& allowed) {
    self_ = shared_from_this();
    if (!allowed.ok()) {
      End(allowed);
      return;
    }
    StartRead(&report_);
  }

  void Send(v1::RouterCommand command) {
    {
      const absl::MutexLock lock(&mutex_);
      if (end_.has_value()) return;
      commands_.push_back(std::move(command));
    }
    Pump();
  }

  // After what was sent before. The first status counts.
  void End(const absl::Status& status) {
    {
      const absl::MutexLock lock(&mutex_);
      if (end_.has_value()) return;
      end_ = rpc::ToGrpc(status);
    }
    Pump();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      loop_.Post([session = self_] {
        session->service_.Ended(session, absl::UnavailableError("its registry stream ended"));
      });
      return;
    }
    loop_.Post([session = self_, report = std::move(report_)] {
      session->service_.Received(session, report);
    });
    report_ = v1::WorkerReport();
    StartRead(&report_);
  }

  void OnWriteDone(bool ok) override {
    {
      const absl::MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) commands_.clear();
    }
    Pump();
  }

  void OnCancel() override {
    loop_.Post([session = self_] {
      session->service_.Ended(session, absl::UnavailableError("its registry stream broke"));
    });
  }

  void OnDone() override { self_.reset(); }

  // The loop's own.
  Attachment attachment = Attachment::kNone;
  WorkerKind kind = WorkerKind::kDecode;

 private:
  void Pump() {
    std::optional<grpc::Status> finish;
    {
      const absl::MutexLock lock(&mutex_);
      if (writing_ || finished_) return;
      if (!commands_.empty()) {
        current_ = std::move(commands_.front());
        commands_.pop_front();
        writing_ = true;
      } else if (end_.has_value()) {
        finished_ = true;
        finish = *end_;
      } else {
        return;
      }
    }
    if (finish.has_value()) {
      Finish(*finish);  // may end in OnDone at once: nothing after it
    } else {
      StartWrite(&current_);
    }
  }

  RegistryService& service_;
  Loop& loop_;
  std::shared_ptr<Session> self_;  // gRPC's share, given up in OnDone
  v1::WorkerReport report_;        // the read under way
  v1::RouterCommand current_;      // the write under way
  absl::Mutex mutex_;
  std::deque<v1::RouterCommand> commands_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

RegistryService::RegistryService(RegistryServiceOptions options, Registry& registry, Engine& engine,
                                 Offer& offer, Loop& loop)
    : options_(std::move(options)),
      registry_(registry),
      engine_(engine),
      offer_(offer),
      loop_(loop) {}

RegistryService::~RegistryService() = default;

grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterCommand>* RegistryService::Attach(
    grpc::CallbackServerContext* context) {
  auto session = std::make_shared<Session>(*this, loop_);
  Session* reactor = session.get();
  session->Start(rpc::CheckCaller(*context, {rpc::Role::kPrefill, rpc::Role::kDecode}));
  return reactor;
}

void RegistryService::Received(const SessionPtr& session, const v1::WorkerReport& report) {
  switch (report.report_case()) {
    case v1::WorkerReport::kJoin:
      Join(session, report.join());
      return;
    case v1::WorkerReport::kLoad:
      Report(session, report.load());
      return;
    case v1::WorkerReport::kLeaving:
      Ended(session, absl::UnavailableError("it left"));
      return;
    case v1::WorkerReport::REPORT_NOT_SET:
      return;  // of a newer version
  }
}

absl::Status RegistryService::CheckFingerprint(const v1::Join& join) {
  v1::Fingerprint expected = fingerprint_.has_value() ? *fingerprint_ : join.fingerprint();
  options_.set_known_fields(expected);
  rpc::SealFingerprint(expected);
  return rpc::CompareFingerprints(expected, join.fingerprint());
}

absl::StatusOr<Registry::Joined> RegistryService::Admit(const Session& session,
                                                        const v1::Join& join) {
  if (stopped_) return absl::UnavailableError("this router is stopping");
  if (session.attachment != Attachment::kNone)
    return absl::InvalidArgumentError("join: a second one on the same stream");
  KVF_RETURN_IF_ERROR(CheckFingerprint(join));
  KVF_ASSIGN_OR_RETURN(WorkerInfo info, ToWorkerInfo(join));
  return registry_.Join(std::move(info), loop_.Now());
}

void RegistryService::Join(const SessionPtr& session, const v1::Join& join) {
  const absl::StatusOr<Registry::Joined> joined = Admit(*session, join);
  if (!joined.ok()) {
    Log(LogLevel::kWarning, "worker_refused",
        {{"worker", join.name()}, {"address", join.control_address()}, {"why", joined.status()}});
    session->End(joined.status());
    return;
  }
  fingerprint_ = join.fingerprint();
  session->attachment = joined->attachment;
  sessions_[joined->attachment] = session;
  for (const Worker& old : joined->replaced)
    Lost(old, absl::UnavailableError(absl::StrCat(old.info.name, " has joined anew")));

  const Worker& worker = registry_.workers().at(joined->attachment);
  session->kind = worker.info.kind;
  Log(LogLevel::kInfo, "worker_joined",
      {{"worker", worker.info.name},
       {"role", ToAbsl(KindName(worker.info.kind))},
       {"address", worker.info.control_address}});
  v1::RouterCommand command;
  command.mutable_welcome()->set_router_incarnation(
      static_cast<std::uint64_t>(options_.incarnation));
  *command.mutable_welcome()->mutable_report_interval() = rpc::ToProto(options_.report_interval);
  *command.mutable_welcome()->mutable_silence_limit() = rpc::ToProto(registry_.limits().silence);
  session->Send(std::move(command));
  for (const TransferName& transfer : engine_.WorkerJoined(worker, *fingerprint_)) {
    v1::RouterCommand told;
    told.mutable_release()->set_transfer_id(transfer.id);
    told.mutable_release()->set_epoch(transfer.epoch);
    session->Send(std::move(told));
  }
  if (worker.drain_requested) {
    v1::RouterCommand drain;
    drain.mutable_drain();
    session->Send(std::move(drain));
  }
  UpdateOffer();
  if (worker.info.kind == WorkerKind::kDecode) {
    AnnounceDecodeWorkers();
  } else {
    session->Send(PeersCommand());
  }
  if (!checking_) CheckSilence();
}

void RegistryService::Report(const SessionPtr& session, const v1::Load& message) {
  const absl::StatusOr<WorkerLoad> load = ToWorkerLoad(message);
  if (!load.ok()) {
    Ended(session, load.status());
    return;
  }
  switch (registry_.Report(session->attachment, *load, loop_.Now())) {
    case Registry::ReportResult::kUnknown:
      session->End(absl::UnavailableError("not attached; join again"));
      return;
    case Registry::ReportResult::kStalled: {
      const Worker worker = registry_.workers().at(session->attachment);
      const absl::Status why = absl::UnavailableError(
          absl::StrCat("the engine of ", worker.info.name, " has had work but made no step for ",
                       absl::FormatDuration(load->engine_stall)));
      Log(LogLevel::kWarning, "worker_stalled", {{"worker", worker.info.name}, {"why", why}});
      engine_.WorkerLost(worker, why, /*detached=*/false);
      return;
    }
    case Registry::ReportResult::kOk:
      engine_.WorkerReported();
      return;
  }
}

void RegistryService::Ended(const SessionPtr& session, const absl::Status& why) {
  for (const Worker& worker : registry_.Leave(session->attachment)) {
    Lost(worker, absl::UnavailableError(absl::StrCat(worker.info.name, ": ", why.message())));
  }
  // A worker may read the end of the stream before it has closed its own side.
  session->End(absl::IsUnavailable(why) ? absl::OkStatus() : why);
}

void RegistryService::Lost(const Worker& worker, const absl::Status& why) {
  Log(LogLevel::kWarning, "worker_lost", {{"worker", worker.info.name}, {"why", why}});
  if (auto node = sessions_.extract(worker.attachment)) node.mapped()->End(why);
  if (registry_.workers().empty()) fingerprint_.reset();  // the next may bring another model
  engine_.WorkerLost(worker, why, /*detached=*/true);
  UpdateOffer();
  if (worker.info.kind == WorkerKind::kDecode) AnnounceDecodeWorkers();
}

void RegistryService::CheckSilence() {
  for (const Worker& worker : registry_.Expire(loop_.Now())) {
    Lost(worker, absl::UnavailableError(absl::StrCat(
                     worker.info.name, " was silent for ",
                     absl::FormatDuration(registry_.limits().silence), "; join again")));
  }
  checking_ = !registry_.workers().empty();
  if (checking_) {
    check_timer_ =
        loop_.At(loop_.Now() + registry_.limits().check_interval, [this] { CheckSilence(); });
  }
}

v1::RouterCommand RegistryService::PeersCommand() const {
  v1::RouterCommand command;
  command.mutable_peers();
  for (const auto& [attachment, worker] : registry_.workers()) {
    if (worker.info.kind != WorkerKind::kDecode) continue;
    v1::Peer& peer = *command.mutable_peers()->add_decode();
    peer.set_name(worker.info.name);
    peer.set_control_address(worker.info.control_address);
    peer.set_incarnation(static_cast<std::uint64_t>(worker.info.incarnation));
  }
  return command;
}

void RegistryService::AnnounceDecodeWorkers() {
  const v1::RouterCommand command = PeersCommand();
  for (const auto& [attachment, session] : sessions_) {
    if (session->kind == WorkerKind::kPrefill) session->Send(command);
  }
}

void RegistryService::UpdateOffer() {
  Offer::Now now;
  now.codecs = registry_.known_codecs();
  for (const auto& [attachment, worker] : registry_.workers()) {
    if (worker.info.kind == WorkerKind::kDecode) {
      now.attached_codecs.insert(worker.info.codecs.begin(), worker.info.codecs.end());
      now.max_context_tokens = std::max(now.max_context_tokens, worker.info.max_context_tokens);
    }
  }
  offer_.Set(std::move(now));
}

absl::Status RegistryService::Drain(const std::string& worker) {
  if (absl::Status status = registry_.RequestDrain(worker); !status.ok()) return status;
  for (const auto& [attachment, session] : sessions_) {
    if (registry_.workers().at(attachment).info.name != worker) continue;
    v1::RouterCommand command;
    command.mutable_drain();
    session->Send(std::move(command));
  }
  return absl::OkStatus();
}

void RegistryService::Shutdown() {
  stopped_ = true;
  loop_.CancelTimer(check_timer_);
  for (const auto& [attachment, session] : sessions_)
    session->End(absl::UnavailableError("this router is stopping"));
  sessions_.clear();
}

}  // namespace kvferry::router
