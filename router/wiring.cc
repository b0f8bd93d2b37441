#include "router/wiring.h"

#include <array>
#include <optional>
#include <utility>

#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "router/config.h"
#include "router/convert.h"
#include "router/engine.h"
#include "router/intake.h"
#include "router/loop.h"
#include "router/registry.h"
#include "router/registry_service.h"
#include "router/service.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/server.h"

namespace kvferry::router {
namespace {

// Calls that end by themselves when the engine fails their requests.
constexpr absl::Duration kServerGrace = absl::Seconds(1);
constexpr int kChecksPerSilence = 15;

// What a router knows of the model without reading its weights.
void SetKnownFields(const ServedModel& model, v1::Fingerprint& fingerprint) {
  fingerprint.set_model_name(model.name);
  fingerprint.set_layers(model.config.layers);
  fingerprint.set_kv_heads(model.config.kv_heads);
  fingerprint.set_head_dim(model.config.head_dim);
  fingerprint.set_rope_hash(model.config.RopeHash());
  fingerprint.set_vocabulary(model.config.vocabulary);
  fingerprint.set_codecs_hash(codec::RegistryHash());
}

// Members stand in the order in which they must outlive each other; Shutdown stops them in reverse.
class Node final : public RouterNode {
 public:
  explicit Node(v1::RouterConfig config) : config_(std::move(config)) {}
  ~Node() override { Shutdown(); }

  absl::Status Start() {
    metrics_ = Metrics::Create();
    if (!config_.metrics().listen_address().empty())
      KVF_RETURN_IF_ERROR(metrics_->Serve(config_.metrics().listen_address()));
    KVF_ASSIGN_OR_RETURN(rpc::Credentials credentials, rpc::Credentials::Load(config_.tls()));
    credentials_ = std::move(credentials);
    KVF_ASSIGN_OR_RETURN(model_, ServedModel::Load(config_.model().path(), config_.model().name()));
    StartEngine();
    return StartServer();
  }

  const std::string& address() const override { return server_->address(); }
  Incarnation incarnation() const override { return incarnation_; }

  void Drain() override {
    loop_->Post([this] { engine_->StartDraining(); });
    server_->SetServing(false);
    Log(LogLevel::kInfo, "draining", {{"name", config_.name()}});
  }

  bool idle() const override {
    bool idle = true;
    loop_->Run([&] { idle = engine_->queued() + engine_->running() == 0; });
    return idle;
  }

  void Shutdown() override {
    if (std::exchange(stopped_, true)) return;
    if (server_ != nullptr) server_->SetServing(false);
    if (loop_ == nullptr) return;
    loop_->Run([this] { registry_service_->Shutdown(); });
    engine_->Shutdown();
    if (server_ != nullptr) server_->Shutdown(kServerGrace);
    intake_loop_->Stop();
    loop_->Stop();
  }

 private:
  void StartEngine() {
    const absl::Duration silence = *rpc::ToDuration("", config_.silence_limit());
    loop_ = std::make_unique<Loop>(clock_);
    intake_loop_ = std::make_unique<Loop>(clock_);
    registry_ = std::make_unique<Registry>(
        Registry::Limits{.silence = silence,
                         .stall = *rpc::ToDuration("", config_.stall_limit()),
                         .check_interval = silence / kChecksPerSilence});
    engine_ = std::make_unique<Engine>(
        EngineOptions{.max_queued_requests = config_.max_queued_requests(),
                      .request = {.max_attempts = config_.max_attempts(),
                                  .queue_limit = *rpc::ToDuration("", config_.queue_limit())}},
        *model_.tokenizer, *credentials_, *registry_, *loop_, *metrics_);
    registry_service_ = std::make_unique<RegistryService>(
        RegistryServiceOptions{
            .incarnation = incarnation_,
            .report_interval = *rpc::ToDuration("", config_.report_interval()),
            .set_known_fields =
                [this](v1::Fingerprint& fingerprint) { SetKnownFields(model_, fingerprint); }},
        *registry_, *engine_, offer_, *loop_);
  }

  absl::Status StartServer() {
    inference_service_ =
        std::make_unique<InferenceService>(model_, offer_, *engine_, *intake_loop_);
    v1::GetStateResponse identity;
    identity.set_name(config_.name());
    identity.set_role("router");
    identity.set_incarnation(static_cast<std::uint64_t>(incarnation_));
    admin_service_ =
        std::make_unique<AdminService>(std::move(identity), *engine_, *registry_,
                                       *registry_service_, *loop_, *metrics_, [this] { Drain(); });
    const std::array<grpc::Service*, 3> services = {inference_service_.get(),
                                                    registry_service_.get(), admin_service_.get()};
    KVF_ASSIGN_OR_RETURN(server_,
                         rpc::Server::Start({.listen_address = config_.listen_address(),
                                             .max_message_bytes = config_.max_message_bytes()},
                                            *credentials_, services));
    server_->SetServing(true);
    return absl::OkStatus();
  }

  const v1::RouterConfig config_;
  const Incarnation incarnation_{RandomId64()};
  const Clock& clock_ = Clock::Steady();
  std::unique_ptr<Metrics> metrics_;
  std::optional<rpc::Credentials> credentials_;
  ServedModel model_;
  Offer offer_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Loop> intake_loop_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RegistryService> registry_service_;
  std::unique_ptr<InferenceService> inference_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<rpc::Server> server_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RouterNode>> RouterNode::Create(v1::RouterConfig config) {
  KVF_RETURN_IF_ERROR(CompleteConfig(config));
  auto node = std::make_unique<Node>(std::move(config));
  KVF_RETURN_IF_ERROR(node->Start());
  return node;
}

}  // namespace kvferry::router
