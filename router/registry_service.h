#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "kvferry/v1/registry.grpc.pb.h"
#include "router/engine.h"
#include "router/intake.h"
#include "router/loop.h"
#include "router/registry.h"

namespace kvferry::router {

struct RegistryServiceOptions {
  Incarnation incarnation{};
  absl::Duration report_interval;
  // What a worker's model must be, as far as a router can tell. The rest comes from the first
  // worker that joins when none is attached.
  std::function<void(v1::Fingerprint&)> set_known_fields;
};

// Registry: the streams of the workers. Checks fingerprints, keeps the registry, tells the engine,
// tells prefill workers of decode workers. Thread: its state belongs to the loop.
class RegistryService final : public v1::Registry::CallbackService {
 public:
  // All outlive the server that serves it.
  RegistryService(RegistryServiceOptions options, Registry& registry, Engine& engine, Offer& offer,
                  Loop& loop);
  ~RegistryService() override;

  grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterCommand>* Attach(
      grpc::CallbackServerContext* context) override;

  // -- Loop.
  absl::Status Drain(const std::string& worker);
  // Of the attached workers; null while there are none.
  const v1::Fingerprint* fingerprint() const {
    return fingerprint_.has_value() ? &*fingerprint_ : nullptr;
  }
  // Ends all streams; refuses new ones.
  void Shutdown();

 private:
  class Session;
  using SessionPtr = std::shared_ptr<Session>;

  void Received(const SessionPtr& session, const v1::WorkerReport& report);
  absl::StatusOr<Registry::Joined> Admit(const Session& session, const v1::Join& join);
  void Join(const SessionPtr& session, const v1::Join& join);
  absl::Status CheckFingerprint(const v1::Join& join);
  void Report(const SessionPtr& session, const v1::Load& load);
  // The stream is over, with a goodbye or without.
  void Ended(const SessionPtr& session, const absl::Status& why);
  void Lost(const Worker& worker, const absl::Status& why);
  void CheckSilence();
  void AnnounceDecodeWorkers();
  v1::RouterCommand PeersCommand() const;
  void UpdateOffer();

  const RegistryServiceOptions options_;
  Registry& registry_;
  Engine& engine_;
  Offer& offer_;
  Loop& loop_;
  std::optional<v1::Fingerprint> fingerprint_;
  std::map<Attachment, SessionPtr> sessions_;
  Loop::TimerId check_timer_{};
  bool checking_ = false;
  bool stopped_ = false;
};

}  // namespace kvferry::router
