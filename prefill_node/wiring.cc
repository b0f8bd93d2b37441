#include "prefill_node/wiring.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/config_loader.h"
#include "common/device_watch.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "prefill_node/config.h"
#include "prefill_node/convert.h"
#include "prefill_node/engine.h"
#include "prefill_node/handshake.h"
#include "prefill_node/service.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/registry_client.h"
#include "rpc/server.h"
#include "worker/device.h"
#include "worker/model.h"
#include "worker/transport.h"
#if KVFERRY_CUDA
#include "kernels/cuda/buffer.h"
#include "kernels/cuda_quantizer.h"
#endif

namespace kvferry::prefill {
namespace {

// Calls that end by themselves when the engine fails their jobs.
constexpr absl::Duration kServerGrace = absl::Seconds(1);
constexpr int kModelPriority = -1;  // of its stream on a GPU

absl::StatusOr<codec::CodebookSet> ReadCodebooks(const v1::PrefillConfig& config,
                                                 const codec::CacheGeometry& geometry) {
  codec::CodebookSet set;
  for (const std::string& path : config.codebooks()) {
    KVF_ASSIGN_OR_RETURN(const auto books, codec::Codebooks::Open(path));
    if (const absl::Status status = books->FitsModel(geometry); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("codebooks: '", path, "': ", status.message()));
    }
    set[books->hash()] = books;
  }
  return set;
}

// The registered codecs that the quantizer has for every layer of this model, coupled ones with
// each of their codebooks.
std::vector<std::string> CodecNames(const codec::Quantizer& quantizer,
                                    const codec::CodebookSet& codebooks,
                                    const model::ModelConfig& config) {
  std::vector<codec::Codec> codecs;
  for (const codec::Codec& codec : codec::RegisteredCodecs()) {
    if (!codec.NeedsCodebooks()) codecs.push_back(codec);
    for (const auto& [hash, books] : codebooks) {
      if (!codec.NeedsCodebooks() || books->shape().coupling != codec.coupling) continue;
      codecs.push_back(codec::FindCodec(absl::StrCat(codec.name, ":codebooks=",
                                                     absl::Hex(hash, absl::kZeroPad16)))
                           .value());
      codecs.back().codebooks = books;
    }
  }
  std::vector<std::string> names;
  for (const codec::Codec& codec : codecs) {
    bool supported = codec.FitsModel({config.layers, config.kv_heads, config.head_dim}).ok();
    for (int layer = 0; supported && layer < config.layers; ++layer) {
      const absl::StatusOr<codec::BlockSpec> spec = codec.ForLayer(layer, config.head_dim);
      supported = spec.ok() && quantizer.Supports(*spec).ok();
    }
    if (supported) names.push_back(codec.name);
  }
  return names;
}

absl::StatusOr<std::unique_ptr<codec::Quantizer>> MakeQuantizer(const worker::Device& device) {
#if KVFERRY_CUDA
  if (device.stream != nullptr) return kernels::CreateCudaQuantizer(*device.stream);
#else
  static_cast<void>(device);
#endif
  return codec::CreateCpuBackend({.threads = 1});
}

// Members stand in the order in which they must outlive each other; Shutdown stops them in reverse.
class Node final : public PrefillNode {
 public:
  explicit Node(v1::PrefillConfig config) : config_(std::move(config)) {}
  ~Node() override { Shutdown(); }

  absl::Status Start(PrefillNodeParts parts) {
    KVF_RETURN_IF_ERROR(StartMetrics());
    KVF_RETURN_IF_ERROR(StartEngine(std::move(parts)));
    KVF_RETURN_IF_ERROR(StartServer());
    return Attach();
  }

  const std::string& address() const override { return server_->address(); }
  Incarnation incarnation() const override { return incarnation_; }

  void Drain() override {
    engine_->StartDraining();
    if (server_ != nullptr) server_->SetServing(false);
    Log(LogLevel::kInfo, "draining", {{"name", config_.worker().name()}});
  }

  bool WaitIdle(absl::Duration limit) const override {
    const MonoTime end = clock_.Now() + limit;
    return engine_->WaitIdle(limit) &&
           data_plane_->WaitIdle(std::max(end - clock_.Now(), absl::ZeroDuration()));
  }

  void Shutdown() override {
    if (stopped_) return;
    stopped_ = true;
    if (registry_ != nullptr) registry_->Leave();
    if (server_ != nullptr) server_->SetServing(false);
    if (handshaker_ != nullptr) handshaker_->Stop();
    if (engine_ != nullptr) engine_->Stop();
    if (server_ != nullptr) server_->Shutdown(kServerGrace);
    registry_.reset();
    // Aborts reach the receivers before the connection closes.
    if (data_plane_ != nullptr) {
      data_plane_->WaitIdle(kServerGrace);
      data_plane_->Stop();
    }
  }

 private:
  absl::Status StartMetrics() {
    metrics_ = Metrics::Create();
    if (config_.metrics().listen_address().empty()) return absl::OkStatus();
    return metrics_->Serve(config_.metrics().listen_address());
  }

  absl::Status StartEngine(PrefillNodeParts parts) {
    KVF_ASSIGN_OR_RETURN(rpc::Credentials credentials, rpc::Credentials::Load(config_.tls()));
    credentials_ = std::move(credentials);
    model_ = std::move(parts.model);
    if (model_ == nullptr) {
      // The model before the quantizer, which takes what it leaves free.
      KVF_ASSIGN_OR_RETURN(
          device_, worker::OpenDevice(config_.model().device(),
                                      config_.transport().memory() == "cuda", kModelPriority));
      KVF_ASSIGN_OR_RETURN(model_, worker::LoadModel(config_.model(), device_));
    }  // one that is given computes on CPUs
    KVF_ASSIGN_OR_RETURN(quantizer_, MakeQuantizer(device_));
    watch_ = std::make_unique<DeviceWatch>(worker::ContextCheck(device_), std::move(parts.on_lost));
    fingerprint_ = worker::MakeFingerprint(*model_, config_.model().name());
    const model::ModelConfig& shape = model_->config();
    KVF_ASSIGN_OR_RETURN(codebooks_,
                         ReadCodebooks(config_, {shape.layers, shape.kv_heads, shape.head_dim}));
    SenderLimits limits;
    limits.progress_limit = rpc::ToDuration("", config_.transport().progress_limit()).value();
    KVF_ASSIGN_OR_RETURN(
        data_plane_, DataPlane::Create({.incarnation = incarnation_,
                                        .slot_bytes = config_.send_slot_bytes(),
                                        .slots = config_.send_slots(),
                                        .limits = limits,
                                        .dump_folder = config_.dump_folder()},
                                       parts.transport ? parts.transport
                                                       : worker::UcxFactory(config_.transport(),
                                                                            device_.memory.get()),
                                       clock_, *metrics_));
    KVF_RETURN_IF_ERROR(LockSlots());
    KVF_ASSIGN_OR_RETURN(engine_,
                         Engine::Create({.chunk_tokens = static_cast<int>(config_.chunk_tokens()),
                                         .max_queued_requests = config_.max_queued_requests(),
                                         .watch = watch_.get()},
                                        *model_, *quantizer_, *data_plane_, clock_, *metrics_));
    handshaker_ = std::make_unique<Handshaker>(config_.worker().name(), fingerprint_, *credentials_,
                                               *data_plane_);
    return absl::OkStatus();
  }

  // A GPU copies finished blocks into page-locked memory without staging, and the model's thread
  // does not wait for it.
  absl::Status LockSlots() {
#if KVFERRY_CUDA
    if (device_.stream != nullptr) {
      KVF_ASSIGN_OR_RETURN(kernels::RegisteredMemory slots,
                           kernels::RegisteredMemory::Register(data_plane_->host_slots()));
      locked_slots_.emplace(std::move(slots));
    }
#endif
    return absl::OkStatus();
  }

  absl::Status StartServer() {
    const model::ModelConfig& model = model_->config();
    prefill_service_ = std::make_unique<PrefillService>(
        PromptLimits{.vocabulary = model.vocabulary,
                     .max_context_tokens = model.max_context_tokens,
                     .codebooks = codebooks_},
        *engine_, *handshaker_);
    v1::GetStateResponse identity;
    identity.set_name(config_.worker().name());
    identity.set_role("prefill");
    identity.set_incarnation(static_cast<std::uint64_t>(incarnation_));
    *identity.mutable_fingerprint() = fingerprint_;
    admin_service_ = std::make_unique<AdminService>(std::move(identity), *engine_, *data_plane_,
                                                    clock_, *metrics_, [this] { Drain(); });
    const std::array<grpc::Service*, 2> services = {prefill_service_.get(), admin_service_.get()};
    KVF_ASSIGN_OR_RETURN(server_,
                         rpc::Server::Start({.listen_address = config_.worker().listen_address()},
                                            *credentials_, services));
    server_->SetServing(true);
    return absl::OkStatus();
  }

  absl::Status Attach() {
    const v1::WorkerConfig& worker = config_.worker();
    if (worker.router_addresses().empty()) {
      Log(LogLevel::kWarning, "no_router",
          {{"why", "worker.router_addresses is empty: only direct calls reach this worker"}});
      return absl::OkStatus();
    }
    v1::Join join;
    join.set_role(v1::WORKER_ROLE_PREFILL);
    join.set_name(worker.name());
    join.set_incarnation(static_cast<std::uint64_t>(incarnation_));
    join.set_control_address(worker.advertise_address().empty() ? address()
                                                                : worker.advertise_address());
    *join.mutable_fingerprint() = fingerprint_;
    for (std::string& name : CodecNames(*quantizer_, codebooks_, model_->config()))
      join.add_codecs(name);
    join.set_max_context_tokens(model_->config().max_context_tokens);
    for (const std::string& label : data_plane_->labels()) join.add_transports(label);
    rpc::RegistryClient::Callbacks callbacks;
    callbacks.load = [this] {
      v1::Load load;
      FillLoad(engine_->load(), load);
      return load;
    };
    callbacks.command = [this](const v1::RouterCommand& command) { Obey(command); };
    callbacks.refused = [](const std::string& router, const absl::Status& why) {
      Log(LogLevel::kError, "router_refused", {{"router", router}, {"why", why}});
    };
    registry_ = rpc::RegistryClient::Start(
        {worker.router_addresses().begin(), worker.router_addresses().end()}, *credentials_, join,
        callbacks);
    return absl::OkStatus();
  }

  void Obey(const v1::RouterCommand& command) {
    switch (command.command_case()) {
      case v1::RouterCommand::kDrain:
        Drain();
        return;
      case v1::RouterCommand::kRelease: {
        const absl::StatusOr<TransferId> id =
            rpc::ToTransferId("transfer_id", command.release().transfer_id());
        if (!id.ok()) {
          Log(LogLevel::kWarning, "release_refused", {{"why", id.status()}});
          return;
        }
        engine_->Abort(*id, Epoch{command.release().epoch()},
                       absl::CancelledError("released by the router"));
        return;
      }
      case v1::RouterCommand::kPeers:
        for (const v1::Peer& peer : command.peers().decode()) {
          handshaker_->Ensure({.name = peer.name(),
                               .control_address = peer.control_address(),
                               .incarnation = Incarnation{peer.incarnation()}},
                              [](const absl::Status&) {});  // logged where it failed
        }
        return;
      default:
        return;
    }
  }

  const v1::PrefillConfig config_;
  const Incarnation incarnation_{RandomId64()};
  const Clock& clock_ = Clock::Steady();
  v1::Fingerprint fingerprint_;
  std::unique_ptr<Metrics> metrics_;
  std::optional<rpc::Credentials> credentials_;
  worker::Device device_;
  std::unique_ptr<codec::Quantizer> quantizer_;
  std::unique_ptr<DeviceWatch> watch_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<DataPlane> data_plane_;
#if KVFERRY_CUDA
  std::optional<kernels::RegisteredMemory> locked_slots_;  // of the data plane
#endif
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Handshaker> handshaker_;
  codec::CodebookSet codebooks_;
  std::unique_ptr<PrefillService> prefill_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<rpc::RegistryClient> registry_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillNode>> PrefillNode::Create(v1::PrefillConfig config,
                                                                 PrefillNodeParts parts) {
  KVF_RETURN_IF_ERROR(CompleteConfig(config));
  auto node = std::make_unique<Node>(std::move(config));
  KVF_RETURN_IF_ERROR(node->Start(std::move(parts)));
  return node;
}

}  // namespace kvferry::prefill
