#include "decode_node/wiring.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/device_watch.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "decode_node/config.h"
#include "decode_node/convert.h"
#include "decode_node/engine.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_step_runner.h"
#include "decode_node/service.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/open_codec.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/registry_client.h"
#include "rpc/server.h"
#include "worker/device.h"
#include "worker/model.h"
#include "worker/transport.h"
#if KVFERRY_CUDA
#include "decode_node/device_cache_memory.h"
#include "decode_node/device_step_runner.h"
#endif

namespace kvferry::decode {
namespace {

// Calls that end by themselves when the engine fails their sequences.
constexpr absl::Duration kServerGrace = absl::Seconds(1);

int AttentionThreads(const v1::ModelSource& source) {
  if (source.threads() > 0) return static_cast<int>(source.threads());
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

absl::StatusOr<std::unique_ptr<CacheMemory>> MakeMemory(const worker::Device& device,
                                                        const v1::DecodeConfig& config, int layers,
                                                        const codec::Backend* backend) {
#if KVFERRY_CUDA
  if (device.gpu.has_value()) {
    return DeviceCacheMemory::Create(
        {.gpu = *device.gpu,
         .slot_bytes = config.landing_slot_bytes(),
         .max_flush_items = layers * static_cast<int>(config.max_sequences())},
        *device.stream);
  }
#else
  static_cast<void>(device), static_cast<void>(config), static_cast<void>(layers);
#endif
  return std::make_unique<HostCacheMemory>(*backend);
}

absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const worker::Device& device,
                                                       const v1::DecodeConfig& config,
                                                       model::Model& model, const CacheStore& store,
                                                       const codec::Backend* backend) {
#if KVFERRY_CUDA
  if (device.gpu.has_value()) {
    return DeviceStepRunner::Create(
        {.gpu = *device.gpu, .max_sequences = static_cast<int>(config.max_sequences())}, model,
        store, *device.stream, kernels::DecodeAttention::Create);
  }
#else
  static_cast<void>(device), static_cast<void>(config);
#endif
  return std::make_unique<HostStepRunner>(model, store, *backend);
}

// Members stand in the order in which they must outlive each other; Shutdown stops them in reverse.
class Node final : public DecodeNode {
 public:
  explicit Node(v1::DecodeConfig config) : config_(std::move(config)) {}
  ~Node() override { Shutdown(); }

  absl::Status Start(DecodeNodeParts parts) {
    KVF_RETURN_IF_ERROR(StartMetrics());
    KVF_RETURN_IF_ERROR(StartEngine(std::move(parts.model), std::move(parts.on_lost)));
    KVF_RETURN_IF_ERROR(StartDataPlane(parts.transport));
    KVF_RETURN_IF_ERROR(StartServer());
    KVF_RETURN_IF_ERROR(Attach());
    ready_ = true;
    if (data_plane_->draining()) Drain();
    return absl::OkStatus();
  }

  const std::string& address() const override { return server_->address(); }
  Incarnation incarnation() const override { return incarnation_; }

  void Drain() override {
    data_plane_->StartDraining();
    if (!ready_) return;  // Start looks again
    server_->SetServing(false);
    if (registry_ != nullptr) registry_->ReportSoon();
    Log(LogLevel::kInfo, "draining", {{"name", config_.worker().name()}});
  }

  bool WaitIdle(absl::Duration limit) const override {
    const MonoTime end = clock_.Now() + limit;
    return data_plane_->WaitIdle(limit) &&
           engine_->WaitIdle(std::max(end - clock_.Now(), absl::ZeroDuration()));
  }

  void Shutdown() override {
    if (stopped_) return;
    stopped_ = true;
    if (registry_ != nullptr) registry_->Leave();
    if (server_ != nullptr) server_->SetServing(false);
    // The streams learn why they end before they are cut off.
    if (data_plane_ != nullptr) data_plane_->Stop();
    if (engine_ != nullptr) engine_->Stop();
    if (server_ != nullptr) server_->Shutdown(kServerGrace);
    registry_.reset();
  }

 private:
  absl::Status StartMetrics() {
    metrics_ = Metrics::Create();
    if (config_.metrics().listen_address().empty()) return absl::OkStatus();
    return metrics_->Serve(config_.metrics().listen_address());
  }

  absl::Status StartEngine(std::unique_ptr<model::Model> model, DeviceWatch::OnLost on_lost) {
    KVF_ASSIGN_OR_RETURN(credentials_, rpc::Credentials::Load(config_.tls()));
    model_ = std::move(model);
    // A model that is given computes on CPUs.
    const bool given = model_ != nullptr;
    KVF_ASSIGN_OR_RETURN(device_,
                         worker::OpenDevice(given ? "cpu" : config_.model().device(),
                                            !given && config_.transport().memory() == "cuda"));
    if (!device_.gpu.has_value()) {
      KVF_ASSIGN_OR_RETURN(backend_,
                           codec::CreateCpuBackend({.threads = AttentionThreads(config_.model())}));
    }
    watch_ = std::make_unique<DeviceWatch>(worker::ContextCheck(device_), std::move(on_lost));
    if (!given) {
      KVF_ASSIGN_OR_RETURN(model_, worker::LoadModel(config_.model(), device_));
    }
    const model::ModelConfig& shape = model_->config();
    max_context_tokens_ = static_cast<std::uint32_t>(shape.max_context_tokens);
    if (config_.has_max_context_tokens()) {
      if (config_.max_context_tokens() == 0 || config_.max_context_tokens() > max_context_tokens_) {
        return absl::InvalidArgumentError(
            absl::StrCat("max_context_tokens is ", config_.max_context_tokens(),
                         "; allowed is [1, ", max_context_tokens_, "], the model's"));
      }
      max_context_tokens_ = config_.max_context_tokens();
    }
    KVF_ASSIGN_OR_RETURN(memory_, MakeMemory(device_, config_, shape.layers, backend_.get()));
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::OpenCodec(config_.codec()));
    KVF_ASSIGN_OR_RETURN(store_, CacheStore::Create({.codec = codec,
                                                     .geometry = {.layers = shape.layers,
                                                                  .kv_heads = shape.kv_heads,
                                                                  .head_dim = shape.head_dim},
                                                     .pool_bytes = config_.pool_bytes(),
                                                     .prepared_sequences = PreparedSequences()},
                                                    *memory_));
    KVF_ASSIGN_OR_RETURN(runner_, MakeRunner(device_, config_, *model_, *store_, backend_.get()));
    engine_ = std::make_unique<Engine>(*runner_, *store_, *watch_, clock_, *metrics_);
    return absl::OkStatus();
  }

  // The driver may wait for the GPU when it allocates, and reservations come while others decode.
  int PreparedSequences() const {
    return device_.gpu.has_value() ? static_cast<int>(config_.max_sequences()) : 0;
  }

  absl::Status StartDataPlane(const TransportFactory& transport) {
    DataPlaneOptions options;
    options.incarnation = incarnation_;
    options.slot_bytes = config_.landing_slot_bytes();
    options.slots = config_.landing_slots();
    options.limits.lease = rpc::ToDuration("", config_.grant_lease()).value();
    options.limits.progress_limit =
        rpc::ToDuration("", config_.transport().progress_limit()).value();
    options.admission = {.window = store_->codec().window,
                         .max_context_tokens = max_context_tokens_,
                         .rows = store_->rows(),
                         .max_sequences = config_.max_sequences(),
                         .credits_per_transfer = config_.credits_per_transfer()};
    options.vocabulary = model_->config().vocabulary;
    options.step_time = [this] { return engine_->step_time(); };
    options.adopter_threads = device_.gpu.has_value() ? kDeviceAdopters : 0;
    options.watch = watch_.get();
    KVF_ASSIGN_OR_RETURN(
        data_plane_,
        DataPlane::Create(
            options, *store_,
            transport ? transport : worker::UcxFactory(config_.transport(), device_.memory.get()),
            clock_, *metrics_));
    return absl::OkStatus();
  }

  absl::Status StartServer() {
    parts_.emplace(
        ServiceParts{.store = *store_,
                     .data_plane = *data_plane_,
                     .engine = *engine_,
                     .clock = clock_,
                     .metrics = *metrics_,
                     .name = config_.worker().name(),
                     .fingerprint = worker::MakeFingerprint(*model_, config_.model().name()),
                     .vocabulary = model_->config().vocabulary,
                     .max_sequences = config_.max_sequences(),
                     .control_address = [this] { return ControlAddress(); },
                     .drain = [this] { Drain(); }});
    decode_service_ = std::make_unique<DecodeService>(*parts_);
    transfer_service_ = std::make_unique<TransferService>(*parts_);
    admin_service_ = std::make_unique<AdminService>(*parts_);
    const std::array<grpc::Service*, 3> services = {decode_service_.get(), transfer_service_.get(),
                                                    admin_service_.get()};
    KVF_ASSIGN_OR_RETURN(server_,
                         rpc::Server::Start({.listen_address = config_.worker().listen_address()},
                                            *credentials_, services));
    server_->SetServing(true);
    return absl::OkStatus();
  }

  // A router learns of this worker from the registry, hence after the server has its address.
  std::string ControlAddress() const {
    const std::string& advertised = config_.worker().advertise_address();
    return advertised.empty() ? address() : advertised;
  }

  absl::Status Attach() {
    const v1::WorkerConfig& worker = config_.worker();
    if (worker.router_addresses().empty()) return absl::OkStatus();
    v1::Join join;
    join.set_role(v1::WORKER_ROLE_DECODE);
    join.set_name(worker.name());
    join.set_incarnation(static_cast<std::uint64_t>(incarnation_));
    join.set_control_address(ControlAddress());
    *join.mutable_fingerprint() = parts_->fingerprint;
    join.add_codecs(store_->codec().name);
    join.set_max_context_tokens(max_context_tokens_);
    for (const std::string& label : data_plane_->labels()) join.add_transports(label);
    rpc::RegistryClient::Callbacks callbacks;
    callbacks.load = [this] { return MakeLoad(); };
    callbacks.command = [this](const v1::RouterCommand& command) { Obey(command); };
    callbacks.refused = [](const std::string& router, const absl::Status& why) {
      Log(LogLevel::kError, "router_refused", {{"router", router}, {"why", why}});
    };
    registry_ = rpc::RegistryClient::Start(
        {worker.router_addresses().begin(), worker.router_addresses().end()}, *credentials_, join,
        callbacks);
    return absl::OkStatus();
  }

  v1::Load MakeLoad() const {
    const EngineLoad engine = engine_->load();
    const std::uint32_t sequences = store_->sequences();
    v1::Load load;
    load.set_running_requests(engine.running);
    load.set_queued_requests(std::max(sequences, engine.running) - engine.running);
    load.set_free_pages(std::uint64_t{store_->free_rows()} * store_->geometry().layers);
    load.set_total_pages(std::uint64_t{store_->rows()} * store_->geometry().layers);
    load.set_draining(data_plane_->draining());
    load.set_engine_steps(engine.steps);
    *load.mutable_engine_stall() = rpc::ToProto(engine.stall);
    return load;
  }

  void Obey(const v1::RouterCommand& command) {
    if (command.has_drain()) Drain();
    if (!command.has_release()) return;
    const absl::StatusOr<TransferId> id =
        rpc::ToTransferId("transfer_id", command.release().transfer_id());
    if (!id.ok()) {
      Log(LogLevel::kWarning, "release_refused", {{"why", id.status()}});
      return;
    }
    data_plane_->Release(*id, Epoch{command.release().epoch()},
                         absl::CancelledError("released by the router"));
  }

  const v1::DecodeConfig config_;
  const Incarnation incarnation_{RandomId64()};
  const Clock& clock_ = Clock::Steady();
  std::uint32_t max_context_tokens_ = 0;
  std::unique_ptr<Metrics> metrics_;
  std::optional<rpc::Credentials> credentials_;
  worker::Device device_;
  std::unique_ptr<codec::Backend> backend_;  // on CPUs; null where the device is a GPU
  std::unique_ptr<DeviceWatch> watch_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<CacheMemory> memory_;
  std::unique_ptr<CacheStore> store_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<DataPlane> data_plane_;
  std::optional<ServiceParts> parts_;
  std::unique_ptr<DecodeService> decode_service_;
  std::unique_ptr<TransferService> transfer_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<rpc::RegistryClient> registry_;
  std::atomic<bool> ready_{false};  // all of the above is there: calls may come before
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeNode>> DecodeNode::Create(v1::DecodeConfig config,
                                                               DecodeNodeParts parts) {
  KVF_RETURN_IF_ERROR(CompleteConfig(config));
  auto node = std::make_unique<Node>(std::move(config));
  KVF_RETURN_IF_ERROR(node->Start(std::move(parts)));
  return node;
}

}  // namespace kvferry::decode
