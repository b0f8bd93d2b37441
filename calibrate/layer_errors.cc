#include "calibrate/layer_errors.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <utility>

#include "bench/quality/cache_batch.h"
#include "bench/quality/host_attention.h"
#include "common/status_macros.h"
#include "kvcache/sequence_cache.h"
#include "kvcodec/half.h"

namespace kvferry::calibrate {
namespace {

// Decode steps that are compared: neighbours say nearly the same.
constexpr int kComparedSteps = 8;

double Relative(const ErrorSums::Squares& squares) {
  return squares.exact == 0 ? 0 : std::sqrt(squares.difference / squares.exact);
}

// fp32 keys and values of one sequence: [kv_heads, tokens, head_dim].
struct Values {
  std::vector<float> k, v;
};

// Where a token of a head stands in Values.
struct Place {
  int tokens = 0, head_dim = 0;
  std::size_t operator()(int head, int token) const {
    return (static_cast<std::size_t>(head) * tokens + token) * head_dim;
  }
};

void CopyRaw(const codec::KvView& view, int at, const Place& place, Values& to) {
  for (int head = 0; head < view.kv_heads; ++head) {
    for (int token = 0; token < view.tokens; ++token) {
      const std::int64_t from = head * view.head_stride + token * view.token_stride;
      for (int c = 0; c < view.head_dim; ++c) {
        to.k[place(head, at + token) + c] = codec::FloatFromRaw16(view.type, view.k[from + c]);
        to.v[place(head, at + token) + c] = codec::FloatFromRaw16(view.type, view.v[from + c]);
      }
    }
  }
}

// A page of `spec` read back to the tokens that begin at `at`.
absl::Status CopyPage(std::span<const std::byte> page, const codec::BlockSpec& spec,
                      const AttentionShape& shape, const codec::Backend& backend, int at,
                      const Place& place, Values& to) {
  const std::size_t head_values = static_cast<std::size_t>(codec::kBlockTokens) * shape.head_dim;
  std::vector<float> k(head_values * shape.kv_heads), v(k.size());
  KVF_RETURN_IF_ERROR(backend.Dequantize(page, spec, {.token_begin = at}, shape.kv_heads, k, v));
  for (int head = 0; head < shape.kv_heads; ++head) {
    const auto from = static_cast<std::ptrdiff_t>(head * head_values);
    const auto into = static_cast<std::ptrdiff_t>(place(head, at));
    std::copy_n(k.begin() + from, head_values, to.k.begin() + into);
    std::copy_n(v.begin() + from, head_values, to.v.begin() + into);
  }
  return absl::OkStatus();
}

std::uint16_t ToRaw16(codec::Raw16 type, float value) {
  return type == codec::Raw16::kFp16 ? codec::HalfFromFloat(value) : codec::Bf16FromFloat(value);
}

// The 16-bit values of tokens [at, at + 64), as a quantizer takes them. Exact: they were 16 bit.
codec::KvView RawBlock(const Values& exact, const AttentionShape& shape, codec::Raw16 type, int at,
                       const Place& place, std::vector<std::uint16_t>& storage) {
  const std::size_t head_values = static_cast<std::size_t>(codec::kBlockTokens) * shape.head_dim;
  const std::size_t side = head_values * shape.kv_heads;
  storage.resize(2 * side);
  for (int head = 0; head < shape.kv_heads; ++head) {
    for (std::size_t i = 0; i < head_values; ++i) {
      const std::size_t from = place(head, at) + i, to = head * head_values + i;
      storage[to] = ToRaw16(type, exact.k[from]);
      storage[side + to] = ToRaw16(type, exact.v[from]);
    }
  }
  return {.k = storage.data(),
          .v = storage.data() + side,
          .type = type,
          .kv_heads = shape.kv_heads,
          .tokens = codec::kBlockTokens,
          .head_dim = shape.head_dim,
          .head_stride = static_cast<std::int64_t>(head_values),
          .token_stride = shape.head_dim};
}

struct Attended {
  std::vector<double> scores;  // [q_heads, tokens]
  std::vector<double> output;  // [q_heads, head_dim]
};

Attended Attend(const Values& values, const float* q, const AttentionShape& shape,
                const Place& place) {
  Attended result{std::vector<double>(static_cast<std::size_t>(shape.q_heads) * place.tokens),
                  std::vector<double>(static_cast<std::size_t>(shape.q_heads) * shape.head_dim)};
  const double scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  for (int head = 0; head < shape.q_heads; ++head) {
    const int kv_head = head / (shape.q_heads / shape.kv_heads);
    double* p = result.scores.data() + static_cast<std::size_t>(head) * place.tokens;
    double largest = -INFINITY, sum = 0;
    for (int token = 0; token < place.tokens; ++token) {
      const float* k = values.k.data() + place(kv_head, token);
      float dot = 0;
      for (int c = 0; c < shape.head_dim; ++c) dot += q[head * shape.head_dim + c] * k[c];
      p[token] = scale * dot;
      largest = std::max(largest, p[token]);
    }
    for (int token = 0; token < place.tokens; ++token) {
      p[token] = std::exp(p[token] - largest);
      sum += p[token];
    }
    double* out = result.output.data() + static_cast<std::size_t>(head) * shape.head_dim;
    for (int token = 0; token < place.tokens; ++token) {
      p[token] /= sum;
      const float* v = values.v.data() + place(kv_head, token);
      for (int c = 0; c < shape.head_dim; ++c) out[c] += p[token] * v[c];
    }
  }
  return result;
}

template <typename T>
void AddAll(std::span<const T> exact, std::span<const T> values, ErrorSums::Squares& squares) {
  for (std::size_t i = 0; i < exact.size(); ++i) squares.Add(exact[i], values[i]);
}

struct AlignedDelete {
  void operator()(std::byte* bytes) const { ::operator delete (bytes, std::align_val_t{128}); }
};
using Page = std::unique_ptr<std::byte, AlignedDelete>;

// The exact model's decode steps on an exact cache, looked at with the queries of some.
class ErrorProbe final : public model::DecodeAttention {
 public:
  // specs: [layer][codec].
  ErrorProbe(const bench::HostDevice& device, bench::CacheBatch& exact,
             std::vector<std::vector<codec::BlockSpec>> specs)
      : device_(device), exact_(exact), specs_(std::move(specs)), attention_(device) {
    for (const auto& layer : specs_) sums_.emplace_back(layer.size());
  }

  void Compare(bool compare) { compare_ = compare; }
  const std::vector<std::vector<ErrorSums>>& sums() const { return sums_; }

  codec::Raw16 raw_type() const override { return exact_.store().cache().codec().raw_type; }
  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    attention_.Put(exact_, layer, k, v);
    KVF_RETURN_IF_ERROR(attention_.Attend(exact_, layer, q, out));
    if (!compare_) return absl::OkStatus();
    const model::ModelConfig& config = device_.model().config();
    const AttentionShape shape{config.q_heads, config.kv_heads, config.head_dim};
    for (const decode::StoredSequence* cache : exact_.caches()) {
      KVF_RETURN_IF_ERROR(AddErrors(cache->View(layer), exact_.store().cache().specs()[layer], q,
                                    shape, specs_[layer], device_.quantizer(), sums_[layer]));
      q += static_cast<std::size_t>(shape.q_heads) * shape.head_dim;
    }
    return absl::OkStatus();
  }

 private:
  const bench::HostDevice& device_;
  bench::CacheBatch& exact_;
  const std::vector<std::vector<codec::BlockSpec>> specs_;
  bench::HostAttention attention_;
  bool compare_ = false;
  std::vector<std::vector<ErrorSums>> sums_;  // [layer][codec]
};

}  // namespace

LayerErrors ErrorSums::errors() const {
  return {.keys = Relative(keys),
          .values = Relative(values),
          .scores = Relative(scores),
          .output = Relative(output)};
}

absl::Status AddErrors(const codec::SequenceKv& exact, const codec::BlockSpec& raw, const float* q,
                       const AttentionShape& shape, std::span<const codec::BlockSpec> specs,
                       const codec::Backend& backend, std::span<ErrorSums> sums) {
  const int sinks = exact.sinks.tokens, blocks = static_cast<int>(exact.pages.size());
  const Place place{sinks + blocks * codec::kBlockTokens + exact.window.tokens, shape.head_dim};
  Values values;
  values.k.resize(static_cast<std::size_t>(shape.kv_heads) * place.tokens * shape.head_dim);
  values.v.resize(values.k.size());
  const auto block_begin = [&](int block) { return sinks + block * codec::kBlockTokens; };
  CopyRaw(exact.sinks, 0, place, values);
  CopyRaw(exact.window, block_begin(blocks), place, values);
  for (int block = 0; block < blocks; ++block) {
    KVF_RETURN_IF_ERROR(CopyPage({exact.pages[block], codec::PageBytes(raw, shape.kv_heads)}, raw,
                                 shape, backend, block_begin(block), place, values));
  }
  const Attended attended = Attend(values, q, shape, place);
  std::vector<std::uint16_t> storage;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    Values lossy = values;
    const std::size_t bytes = codec::PageBytes(specs[i], shape.kv_heads);
    const Page page(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{128})));
    for (int block = 0; block < blocks; ++block) {
      const int at = block_begin(block);
      KVF_RETURN_IF_ERROR(
          backend.Quantize(RawBlock(values, shape, raw.raw_type, at, place, storage), specs[i],
                           {.layer = 0, .token_begin = at}, {page.get(), bytes}));
      KVF_RETURN_IF_ERROR(
          CopyPage({page.get(), bytes}, specs[i], shape, backend, at, place, lossy));
      const std::size_t count = static_cast<std::size_t>(codec::kBlockTokens) * shape.head_dim;
      for (int head = 0; head < shape.kv_heads; ++head) {
        const std::size_t from = place(head, at);
        AddAll<float>(std::span(values.k).subspan(from, count),
                      std::span(lossy.k).subspan(from, count), sums[i].keys);
        AddAll<float>(std::span(values.v).subspan(from, count),
                      std::span(lossy.v).subspan(from, count), sums[i].values);
      }
    }
    const Attended moved = Attend(lossy, q, shape, place);
    AddAll<double>(attended.scores, moved.scores, sums[i].scores);
    AddAll<double>(attended.output, moved.output, sums[i].output);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<LayerErrors>>> MeasureErrors(
    bench::HostDevice& device, std::span<const ExactPassage> passages,
    std::span<const codec::Codec> codecs, const PassageOptions& options, const Progress& progress) {
  const model::ModelConfig& config = device.model().config();
  std::vector<std::vector<codec::BlockSpec>> specs(config.layers);
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const codec::Codec& codec : codecs) {
      KVF_ASSIGN_OR_RETURN(specs[layer].emplace_back(), codec.ForLayer(layer, config.head_dim));
    }
  }
  KVF_ASSIGN_OR_RETURN(codec::Codec raw, codec::FindCodec("fp16"));
  raw.window = codecs.front().window;
  const std::uint64_t rows =
      passages.size() * cache::RowsNeeded(options.prompt_tokens, options.decode_tokens, raw.window);
  KVF_ASSIGN_OR_RETURN(
      const std::unique_ptr<bench::DeviceStore> store,
      bench::DeviceStore::Create(raw, rows, static_cast<int>(passages.size()), device));
  bench::CacheBatch batch(*store);
  for (const ExactPassage& passage : passages) {
    const bench::Recipient to = {batch, options.decode_tokens};
    KVF_RETURN_IF_ERROR(bench::ShipPrompt(passage.prompt.layers, std::span(&to, 1)).status());
  }
  ErrorProbe probe(device, batch, std::move(specs));
  std::vector<float> logits(passages.size() * static_cast<std::size_t>(config.vocabulary));
  const int stride = std::max(1, options.decode_tokens / kComparedSteps);
  for (int step = 0; step < options.decode_tokens; ++step) {
    progress("errors of attention, token", step, options.decode_tokens);
    std::vector<std::int32_t> tokens;
    for (const ExactPassage& passage : passages) {
      tokens.push_back(passage.passage.tokens[options.prompt_tokens + step]);
    }
    probe.Compare(step % stride == 0);
    const std::vector<std::int32_t> positions = batch.Positions();
    for (decode::StoredSequence* sequence : batch.caches()) sequence->Append();
    KVF_RETURN_IF_ERROR(device.model().DecodeStep(tokens, positions, probe, logits));
    KVF_RETURN_IF_ERROR(batch.Flush());
  }
  std::vector<std::vector<LayerErrors>> errors;
  for (const std::vector<ErrorSums>& layer : probe.sums()) {
    std::vector<LayerErrors>& of_layer = errors.emplace_back();
    for (const ErrorSums& sums : layer) of_layer.push_back(sums.errors());
  }
  return errors;
}

}  // namespace kvferry::calibrate
