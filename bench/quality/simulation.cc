#include "bench/quality/simulation.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/quality/compare.h"
#include "bench/quality/passage_tensors.h"
#include "bench/quality/reference_quantize.h"
#include "common/status_macros.h"
#include "kvcodec/cpu/worker_pool.h"
#include "model/torch_device.h"
#include "model/torch_status.h"

namespace kvferry::bench {
namespace {

using codec::kBlockTokens;

// One row of the report over one passage, as the model's attention.
class PassageAttention final : public model::DecodeAttention {
 public:
  struct Setup {
    const SimulatedCodec& codec;
    const codec::Backend& backend;
    codec::cpu::WorkerPool& workers;
    const model::ModelConfig& config;
    std::span<const codec::KvView> prompt;
    const Rotations& rotations;  // of all tokens
    c10::Device device;
    int queries = 0;
  };

  explicit PassageAttention(const Setup& setup)
      : setup_(setup),
        prompt_tokens_(setup.prompt.front().tokens),
        tokens_(prompt_tokens_ + setup.queries) {
    const at::Tensor queries =
        at::arange(prompt_tokens_, tokens_, at::kInt).to(setup.device).unsqueeze(1);
    causal_ = queries >= at::arange(tokens_, at::kInt).to(setup.device).unsqueeze(0);
    k_codes_ = queries >= CodesFromOf(true);
    v_codes_ = (queries >= CodesFromOf(false)).to(at::kFloat);
  }

  codec::Raw16 raw_type() const override { return codec::Raw16::kFp16; }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    return model::CatchTorch("simulated attention", [&]() -> absl::Status {
      const std::int64_t kv_heads = setup_.config.kv_heads, head_dim = setup_.config.head_dim,
                         group = setup_.config.q_heads / kv_heads, n = setup_.queries;
      const KeysValues exact = Append(ToTensors(setup_.prompt[layer], setup_.device), k, v);
      KVF_ASSIGN_OR_RETURN(const KeysValues codes, Lossy(layer, exact));
      // [kv_heads, group * n, head_dim]
      const at::Tensor queries =
          at::from_blob(const_cast<float*>(q), {n, kv_heads, group, head_dim}, at::kFloat)
              .to(setup_.device)
              .permute({1, 2, 0, 3})
              .reshape({kv_heads, group * n, head_dim});
      const at::Tensor attended = Attend(queries, exact, codes);
      at::from_blob(out, {n, kv_heads, group, head_dim}, at::kFloat)
          .copy_(attended.view({kv_heads, group, n, head_dim}).permute({2, 0, 1, 3}));
      return absl::OkStatus();
    });
  }

 private:
  at::Tensor CodesFromOf(bool is_key) const {
    std::vector<int> from(static_cast<std::size_t>(tokens_));
    for (int i = 0; i < tokens_; ++i) from[i] = CodesFrom(setup_.codec, is_key, i);
    return at::tensor(at::ArrayRef<int>(from)).to(setup_.device).unsqueeze(0);
  }

  KeysValues Append(const KeysValues& prompt, const std::uint16_t* k,
                    const std::uint16_t* v) const {
    const auto append = [&](const at::Tensor& before, const std::uint16_t* data) {
      const at::Tensor rows =
          at::from_blob(const_cast<std::uint16_t*>(data),
                        {setup_.queries, setup_.config.kv_heads, setup_.config.head_dim}, at::kHalf)
              .to(setup_.device)
              .to(at::kFloat);
      return at::cat({before, rows.transpose(0, 1)}, 1);
    };
    return {append(prompt.k, k), append(prompt.v, v)};
  }

  // One softmax over what is exact and what is codes.
  at::Tensor Attend(const at::Tensor& queries, const KeysValues& exact,
                    const KeysValues& codes) const {
    const std::int64_t heads = queries.size(0), n = setup_.queries;
    const auto scores = [&](const at::Tensor& k) {
      return at::matmul(queries, k.transpose(1, 2)).view({heads, -1, n, tokens_});
    };
    const bool k_lossy = !codes.k.is_same(exact.k), v_lossy = !codes.v.is_same(exact.v);
    at::Tensor s = scores(exact.k);
    if (k_lossy) s = at::where(k_codes_, scores(codes.k), s);
    s.mul_(1 / std::sqrt(static_cast<double>(setup_.config.head_dim)));
    s.masked_fill_(causal_.logical_not(), -std::numeric_limits<float>::infinity());
    const at::Tensor p = at::softmax(s, -1);
    const auto sum = [&](const at::Tensor& weights, const at::Tensor& v) {
      return at::matmul(weights.reshape({heads, -1, tokens_}), v);
    };
    if (!v_lossy) return sum(p, exact.v);
    const at::Tensor of_codes = p * v_codes_;
    return sum(of_codes, codes.v) + sum(p - of_codes, exact.v);
  }

  // What the codes say; the same tensors where nothing is lost.
  absl::StatusOr<KeysValues> Lossy(int layer, const KeysValues& exact) const {
    const SimulatedCodec& codec = setup_.codec;
    if (codec.only_layer >= 0 && codec.only_layer != layer) return exact;
    KeysValues lossy;
    if (codec.production.has_value()) {
      KVF_ASSIGN_OR_RETURN(lossy, ProductionCodes(layer, exact));
    } else {
      lossy = {ReferenceCodes(exact.k, codec.k, true), ReferenceCodes(exact.v, codec.v, false)};
    }
    if (codec.only_head < 0) return lossy;
    const auto of_head = [&](const at::Tensor& all, const at::Tensor& changed) {
      if (changed.is_same(all)) return all;
      const at::Tensor one = all.clone();
      one.select(0, codec.only_head).copy_(changed.select(0, codec.only_head));
      return one;
    };
    return KeysValues{of_head(exact.k, lossy.k), of_head(exact.v, lossy.v)};
  }

  at::Tensor ReferenceCodes(const at::Tensor& x, const TensorScheme& scheme, bool is_key) const {
    if (scheme.bits == 16) return x;
    int first = 0, block = 1;
    if (setup_.codec.rule == FlushRule::kBlocks) {
      first = setup_.codec.window.sinks;
      block = kBlockTokens;
    } else if (setup_.codec.rule == FlushRule::kKivi && is_key) {
      block = CodesFrom(setup_.codec, true, 0);
    }
    const std::int64_t count = std::max(0, tokens_ - first) / block * block;
    const Rotations rotations = {setup_.rotations.cos.narrow(0, first, count),
                                 setup_.rotations.sin.narrow(0, first, count)};
    const at::Tensor out = x.clone();
    if (count == 0) return out;
    out.narrow(1, first, count)
        .copy_(QuantizeDequantize(x.narrow(1, first, count), scheme, block, rotations));
    return out;
  }

  absl::StatusOr<KeysValues> ProductionCodes(int layer, const KeysValues& exact) const {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec,
                         setup_.codec.production->ForLayer(layer, setup_.config.head_dim));
    const int first = setup_.codec.production->window.sinks;
    const int blocks = std::max(0, tokens_ - first) / kBlockTokens;
    const auto part = [&](const at::Tensor& x) {
      return x.narrow(1, first, blocks * kBlockTokens).to(at::kCPU, at::kHalf).contiguous();
    };
    const at::Tensor k = part(exact.k), v = part(exact.v);
    const codec::KvView view = {.k = static_cast<const std::uint16_t*>(k.const_data_ptr()),
                                .v = static_cast<const std::uint16_t*>(v.const_data_ptr()),
                                .type = codec::Raw16::kFp16,
                                .kv_heads = setup_.config.kv_heads,
                                .tokens = blocks * kBlockTokens,
                                .head_dim = setup_.config.head_dim,
                                .head_stride = std::int64_t{blocks} * kBlockTokens * k.size(2),
                                .token_stride = k.size(2)};
    // [blocks, kv_heads, 64, head_dim]
    const at::Tensor from_k =
        at::empty({blocks, view.kv_heads, kBlockTokens, view.head_dim}, at::kFloat);
    const at::Tensor from_v = at::empty_like(from_k);
    std::vector<absl::Status> statuses(static_cast<std::size_t>(blocks));
    setup_.workers.Run(blocks, [&](int block) {
      const codec::BlockOrigin origin = {.layer = layer,
                                         .token_begin = first + block * kBlockTokens};
      statuses[block] = CodeBlock(view.Tokens(block * kBlockTokens, kBlockTokens), spec, origin,
                                  from_k[block], from_v[block]);
    });
    for (const absl::Status& status : statuses) KVF_RETURN_IF_ERROR(status);
    const auto put = [&](const at::Tensor& x, const at::Tensor& from) {
      const at::Tensor out = x.clone();
      out.narrow(1, first, std::int64_t{blocks} * kBlockTokens)
          .copy_(from.transpose(0, 1).flatten(1, 2));
      return out;
    };
    return KeysValues{put(exact.k, from_k), put(exact.v, from_v)};
  }

  absl::Status CodeBlock(const codec::KvView& view, const codec::BlockSpec& spec,
                         const codec::BlockOrigin& origin, const at::Tensor& k,
                         const at::Tensor& v) const {
    const std::size_t bytes = codec::PageBytes(spec, view.kv_heads);
    constexpr std::size_t kAlign = 128;
    std::vector<std::byte> room(bytes + kAlign);
    void* begin = room.data();
    std::size_t space = room.size();
    const std::span<std::byte> page(
        static_cast<std::byte*>(std::align(kAlign, bytes, begin, space)), bytes);
    KVF_RETURN_IF_ERROR(setup_.backend.Quantize(view, spec, origin, page));
    const auto values = static_cast<std::size_t>(k.numel());
    return setup_.backend.Dequantize(page, spec, origin, view.kv_heads,
                                     std::span(k.mutable_data_ptr<float>(), values),
                                     std::span(v.mutable_data_ptr<float>(), values));
  }

  const Setup setup_;
  const int prompt_tokens_;
  const int tokens_;
  at::Tensor causal_;   // [queries, tokens] bool: what a query sees
  at::Tensor k_codes_;  // the same: what is codes when it comes
  at::Tensor v_codes_;  // 0 or 1
};

class TorchSimulation final : public Simulation {
 public:
  TorchSimulation(Device& device, const codec::Backend& backend, model::TorchDevice torch)
      : device_(device),
        backend_(backend),
        torch_(std::move(torch)),
        workers_(std::max(1, static_cast<int>(std::thread::hardware_concurrency())) - 1) {}

  absl::StatusOr<Record> Run(const SimulatedCodec& codec, const Passage& passage,
                             const ExactPassage& exact) override {
    const absl::Time start = absl::Now();
    Record record;
    KVF_RETURN_IF_ERROR(model::CatchTorch("simulation", [&]() -> absl::Status {
      const c10::InferenceMode guard;
      const model::TorchDevice::Scope scope(torch_);
      return RunSteps(codec, passage, exact, record);
    }));
    record.passage = passage.number;
    record.codec = codec.name;
    record.seconds = absl::ToDoubleSeconds(absl::Now() - start);
    return record;
  }

 private:
  absl::Status RunSteps(const SimulatedCodec& codec, const Passage& passage,
                        const ExactPassage& exact, Record& record) {
    const model::ModelConfig& config = device_.model().config();
    const std::size_t vocabulary = device_.vocabulary();
    const int prompt = exact.prompt.layers.front().tokens;
    const auto queries = static_cast<int>(exact.logits.size() / vocabulary);
    if (codec.production.has_value() && codec.production->raw_type != codec::Raw16::kFp16) {
      return absl::InvalidArgumentError(
          absl::StrCat(codec.name, ": only codecs with fp16 windows are simulated"));
    }
    std::vector<std::int32_t> positions(static_cast<std::size_t>(queries));
    std::iota(positions.begin(), positions.end(), prompt);
    const Rotations rotations = MakeRotations(config, prompt + queries, torch_.device());
    PassageAttention attention({.codec = codec,
                                .backend = backend_,
                                .workers = workers_,
                                .config = config,
                                .prompt = exact.prompt.layers,
                                .rotations = rotations,
                                .device = torch_.device(),
                                .queries = queries});
    logits_.resize(exact.logits.size());
    const auto tokens = passage.tokens.subspan(static_cast<std::size_t>(prompt));
    KVF_RETURN_IF_ERROR(
        device_.model().DecodeStep(tokens.first(positions.size()), positions, attention, logits_));
    std::vector<Comparison> compared(positions.size());
    workers_.Run(queries, [&](int i) {
      compared[i] = Compare(std::span(exact.logits).subspan(i * vocabulary, vocabulary),
                            std::span(logits_).subspan(i * vocabulary, vocabulary), tokens[i + 1]);
    });
    for (const Comparison& one : compared) {
      if (!record.Add(one)) {
        return absl::InternalError(
            absl::StrCat(codec.name, ", passage ", passage.number, ": the logits are not numbers"));
      }
    }
    return absl::OkStatus();
  }

  Device& device_;
  const codec::Backend& backend_;
  const model::TorchDevice torch_;
  codec::cpu::WorkerPool workers_;
  std::vector<float> logits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Simulation>> Simulation::Create(Device& device,
                                                               const codec::Backend& backend) {
  KVF_ASSIGN_OR_RETURN(model::TorchDevice torch,
                       model::TorchDevice::Open(device.torch_device(), device.stream()));
  return std::make_unique<TorchSimulation>(device, backend, std::move(torch));
}

absl::StatusOr<double> ResidentBits(const SimulatedCodec& codec, int tokens,
                                    const codec::CacheGeometry& geometry) {
  double k_bits = CodeBits(codec.k, kBlockTokens), v_bits = CodeBits(codec.v, kBlockTokens);
  if (codec.production.has_value()) {
    k_bits = v_bits = codec.production->BitsPerValue(geometry.head_dim);
  }
  double bits = 0;
  for (int token = 0; token < tokens; ++token) {
    bits += CodesFrom(codec, true, token) <= tokens ? k_bits : 16;
    bits += CodesFrom(codec, false, token) <= tokens ? v_bits : 16;
  }
  bits /= 2.0 * tokens;
  double part = 1;  // of the cache that is not exact
  if (codec.only_layer >= 0) part /= geometry.layers;
  if (codec.only_head >= 0) part /= geometry.kv_heads;
  return 16 + (bits - 16) * part;
}

}  // namespace kvferry::bench
