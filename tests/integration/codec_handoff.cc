#include "tests/integration/codec_handoff.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/open_device.h"
#include "common/status_macros.h"
#include "kvcache/sequence_cache.h"
#include "kvcodec/half.h"
#include "kvcodec/profile.h"
#include "model/rope.h"

namespace kvferry::testing {
namespace {

constexpr char kProfileName[] = "kvtuner";
constexpr absl::Duration kAttachLimit = absl::Seconds(60);
constexpr absl::Duration kFreeLimit = absl::Seconds(10);

absl::StatusOr<float> LeadOver(std::int32_t token, std::span<const float> logits) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
    return absl::InternalError(absl::StrCat("token ", token, " is not in the vocabulary"));
  }
  return *std::max_element(logits.begin(), logits.end()) - logits[token];
}

// One side of one head as it would be learned from: [tokens, head_dim], keys before RoPE.
std::vector<float> SamplesOf(const codec::KvView& kv, int head, bool is_v,
                             const codec::KeyRotation& rotation) {
  std::vector<float> samples;
  std::vector<float> cos(rotation.half()), sin(rotation.half());
  for (int token = 0; token < kv.tokens; ++token) {
    const std::int64_t at = head * kv.head_stride + token * kv.token_stride;
    const std::uint16_t* row = (is_v ? kv.v : kv.k) + at;
    std::vector<float> values(kv.head_dim);
    for (int i = 0; i < kv.head_dim; ++i) values[i] = codec::FloatFromRaw16(kv.type, row[i]);
    if (!is_v) {
      rotation.Angles(token, cos.data(), sin.data());
      for (int i = 0; i < rotation.half(); ++i) {
        const float low = values[i], high = values[i + rotation.half()];
        values[i] = low * cos[i] + high * sin[i];
        values[i + rotation.half()] = high * cos[i] - low * sin[i];
      }
    }
    samples.insert(samples.end(), values.begin(), values.end());
  }
  return samples;
}

// Centroids that are the vectors of random tokens: what k-means would begin with.
absl::StatusOr<std::shared_ptr<const codec::Codebooks>> SampleCodebooks(
    std::span<const codec::KvView> layers, std::span<const float> frequencies,
    const codec::Coupling& coupling) {
  const codec::CodebookShape shape = {.layers = static_cast<int>(layers.size()),
                                      .kv_heads = layers.front().kv_heads,
                                      .head_dim = layers.front().head_dim,
                                      .coupling = coupling};
  const codec::KeyRotation rotation(frequencies);
  std::mt19937 random(11);
  std::uniform_int_distribution<std::size_t> any_token(0, layers.front().tokens - 1);
  std::vector<std::uint16_t> centroids;
  centroids.reserve(shape.values());
  for (const codec::KvView& kv : layers) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (const bool is_v : {false, true}) {
        const std::vector<float> samples = SamplesOf(kv, head, is_v, rotation);
        for (int group = 0; group < shape.groups(); ++group) {
          for (int code = 0; code < coupling.centroids(); ++code) {
            const float* vector = samples.data() + any_token(random) * shape.head_dim +
                                  static_cast<std::size_t>(group) * coupling.channels;
            for (int i = 0; i < coupling.channels; ++i) {
              centroids.push_back(codec::HalfFromFloat(vector[i]));
            }
          }
        }
      }
    }
  }
  return codec::Codebooks::Create(shape, frequencies, centroids, "{}");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CodecHandoff>> CodecHandoff::Start(const HandoffDevices& devices) {
  std::unique_ptr<CodecHandoff> handoff(new CodecHandoff);
  handoff->devices_ = devices;
  const ServedModel& served = devices.model;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  KVF_ASSIGN_OR_RETURN(handoff->cpu_, bench::OpenDevice({.path = served.path,
                                                         .random_weights = served.random_weights,
                                                         .threads = cores}));
  KVF_ASSIGN_OR_RETURN(const std::vector<std::vector<std::int32_t>> prompts,
                       LongPrompts(served, static_cast<int>(handoff->cpu_->vocabulary()), 2));
  handoff->prompt_ = prompts[0];
  KVF_RETURN_IF_ERROR(handoff->MakeCodebooks(prompts[1]));
  KVF_RETURN_IF_ERROR(handoff->WriteProfile());
  KVF_RETURN_IF_ERROR(handoff->StartCluster());
  return handoff;
}

absl::Status CodecHandoff::MakeCodebooks(std::span<const std::int32_t> prompt) {
  KVF_ASSIGN_OR_RETURN(const bench::PrefilledPrompt samples,
                       bench::PrefillPrompt(cpu_->model(), prompt, codec::Raw16::kFp16,
                                            static_cast<int>(prompt.size())));
  const model::Rope rope(cpu_->model().config());
  for (const codec::Codec& codec : codec::RegisteredCodecs()) {
    if (!codec.NeedsCodebooks()) continue;
    KVF_ASSIGN_OR_RETURN(const auto books,
                         SampleCodebooks(samples.layers, rope.frequencies(), codec.coupling));
    std::string& path = codebooks_[codec.name];
    path = (folder_ / (codec.name + ".kvcb")).string();
    KVF_RETURN_IF_ERROR(books->Save(path));
  }
  return absl::OkStatus();
}

absl::Status CodecHandoff::WriteProfile() const {
  constexpr std::array<std::array<int, 2>, 6> kPairs = {
      {{8, 4}, {4, 4}, {4, 2}, {2, 2}, {2, 4}, {8, 8}}};
  nlohmann::json layers = nlohmann::json::array();
  for (int layer = 0; layer < geometry().layers; ++layer) {
    layers.push_back(kPairs[layer % kPairs.size()]);
  }
  std::ofstream file(ProfilePath());
  file << nlohmann::json{{"format", codec::kProfileFormat},
                         {"version", codec::kProfileVersion},
                         {"name", kProfileName},
                         {"codec", codec::kDefaultCodec},
                         {"layers", layers}};
  file.close();
  return file ? absl::OkStatus() : absl::InternalError("cannot write " + ProfilePath());
}

std::vector<std::string> CodecHandoff::MemorySettings() const {
  if (devices_.prefill == "cpu" || devices_.decode == "cpu") return {};
  return {"transport.memory=cuda", "transport.required=cuda_ipc"};
}

std::vector<std::string> CodecHandoff::PrefillSettings() const {
  std::vector<std::string> settings = MemorySettings();
  settings.push_back(absl::StrCat("model.device=", devices_.prefill));
  return settings;
}

absl::Status CodecHandoff::AwaitWorkers(int count) {
  return cluster_->AwaitRouter(kAttachLimit, [count](const v1::GetStateResponse& state) {
    return state.workers_size() == count;
  });
}

absl::Status CodecHandoff::StartCluster() {
  std::vector<std::string> settings = PrefillSettings();
  for (const auto& [codec, path] : codebooks_) {
    settings.push_back(absl::StrCat("codebooks+=", path));
  }
  KVF_ASSIGN_OR_RETURN(
      cluster_,
      Cluster::Start({.decode_workers = 0,
                      .set_prefill = settings,
                      .random_weights = devices_.model.random_weights ? devices_.model.path : ""}));
  return absl::OkStatus();
}

std::string CodecHandoff::SettingOf(const std::string& name) const {
  if (name == kProfileName) return absl::StrCat("kvtuner:", ProfilePath());
  const auto books = codebooks_.find(name);
  return books == codebooks_.end() ? name : absl::StrCat(name, ":codebooks=", books->second);
}

absl::Status CodecHandoff::StartDecode(const std::string& setting) {
  decode_ = absl::StrCat("decode-", decodes_++);
  std::vector<std::string> settings = MemorySettings();
  for (const std::string& other :
       {absl::StrCat("codec=", setting), absl::StrCat("model.device=", devices_.decode),
        std::string("max_sequences=4"), std::string("pool_bytes=67108864")}) {
    settings.push_back(other);
  }
  KVF_RETURN_IF_ERROR(cluster_->Launch({{decode_, rpc::Role::kDecode, settings}}));
  return AwaitWorkers(prefills_ + 1);
}

absl::Status CodecHandoff::StopDecode() {
  cluster_->Stop(decode_);
  return AwaitWorkers(prefills_);
}

absl::Status CodecHandoff::StartPlainPrefill() {
  KVF_RETURN_IF_ERROR(cluster_->Launch(
      {{absl::StrCat("prefill-", prefills_++), rpc::Role::kPrefill, PrefillSettings()}}));
  return AwaitWorkers(prefills_);
}

absl::StatusOr<std::string> CodecHandoff::CodecOfPool() {
  KVF_ASSIGN_OR_RETURN(const v1::GetStateResponse state, cluster_->WorkerState(decode_));
  return state.pool().codec();
}

Answer CodecHandoff::Serve() {
  v1::GenerateRequest request = GreedyRequest("", kTokens);
  request.mutable_tokens()->mutable_ids()->Add(prompt_.begin(), prompt_.end());
  return cluster_->Generate(request);
}

absl::Status CodecHandoff::AwaitAllFree() { return cluster_->AwaitAllFree(kFreeLimit); }

absl::StatusOr<const bench::PrefilledPrompt*> CodecHandoff::Prefilled(codec::Raw16 type) {
  const auto known = prefilled_.find(type);
  if (known != prefilled_.end()) return &known->second;
  KVF_ASSIGN_OR_RETURN(bench::PrefilledPrompt prompt,
                       bench::PrefillPrompt(cpu_->model(), prompt_, type, prompt_tokens()));
  return &prefilled_.emplace(type, std::move(prompt)).first->second;
}

absl::StatusOr<CodecHandoff::CpuPath> CodecHandoff::Follow(const codec::Codec& codec,
                                                           std::span<const std::int32_t> answer) {
  KVF_ASSIGN_OR_RETURN(const bench::PrefilledPrompt* const prompt, Prefilled(codec.raw_type));
  const int tokens = static_cast<int>(answer.size());
  KVF_ASSIGN_OR_RETURN(
      const std::unique_ptr<bench::DeviceStore> store,
      bench::DeviceStore::Create(codec, cache::RowsNeeded(prompt_tokens(), tokens, codec.window), 1,
                                 *cpu_));
  bench::CacheBatch batch(*store);
  const bench::Recipient to = {batch, tokens};
  CpuPath path;
  KVF_ASSIGN_OR_RETURN(path.wire_bytes, bench::ShipPrompt(prompt->layers, std::span(&to, 1)));
  std::span<const float> logits = prompt->session->logits();
  for (const std::int32_t token : answer) {
    KVF_ASSIGN_OR_RETURN(path.leads.emplace_back(), LeadOver(token, logits));
    KVF_ASSIGN_OR_RETURN(logits, batch.Step(std::span(&token, 1)));
  }
  return path;
}

absl::StatusOr<CodecHandoff::CpuPath> CodecHandoff::FollowExactly(
    std::span<const std::int32_t> answer) {
  const int tokens = prompt_tokens() + static_cast<int>(answer.size());
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::PrefillSession> session,
                       cpu_->model().StartPrefill(tokens, codec::Raw16::kFp16));
  const auto ignore = [](int, const codec::KvView&) { return absl::OkStatus(); };
  KVF_RETURN_IF_ERROR(session->Run(prompt_, ignore));
  CpuPath path;
  for (const std::int32_t token : answer) {
    KVF_ASSIGN_OR_RETURN(path.leads.emplace_back(), LeadOver(token, session->logits()));
    KVF_RETURN_IF_ERROR(session->Run(std::span(&token, 1), ignore));
  }
  return path;
}

}  // namespace kvferry::testing
