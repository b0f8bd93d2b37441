#include <cstdint>
#include <vector>

#include "kvcodec/cpu/coupled_rows.h"
#include "kvcodec/cpu/reference_kinds.h"
#include "kvcodec/format.h"
#include "kvcodec/half.h"

// Coupled blocks: the code of a group of channels is its nearest centroid.
namespace kvferry::codec::cpu {
namespace {

// Of two equally near the lower, and 0 where all are infinitely far.
std::uint32_t NearestCentroid(const float* x, const float* by_channel, const Coupling& coupling) {
  float least = 0;
  std::uint32_t nearest = 0;
  for (int code = 0; code < coupling.centroids(); ++code) {
    float distance = 0;
    for (int i = 0; i < coupling.channels; ++i) {
      const float step = x[i] - by_channel[i * coupling.centroids() + code];
      distance += step * step;
    }
    if (code == 0 || distance < least) {
      least = distance;
      nearest = static_cast<std::uint32_t>(code);
    }
  }
  return nearest;
}

// The centroids of a row's codes. coupling: one that IsCoupling. by_code: fp16, of its side. out:
// [head_dim].
void GetRow(const std::byte* row, int head_dim, const Coupling& coupling,
            const std::uint16_t* by_code, float* out) {
  WithCoupling(coupling, [&]<int kChannels, int kBits>(CouplingOf<kChannels, kBits>) {
    for (std::size_t group = 0; group < static_cast<std::size_t>(head_dim) / kChannels; ++group) {
      const std::size_t code = CodesFrom<kBits>(row, group) & ((std::size_t{1} << kBits) - 1);
      const std::uint16_t* const centroid = by_code + ((group << kBits) + code) * kChannels;
      for (int i = 0; i < kChannels; ++i) *out++ = FloatFromHalf(centroid[i]);
    }
  });
}

struct CoupledBlock {
  const BlockSpec& spec;
  BlockPlace place;
  format::CoupledLayout at =
      format::CoupledBlock(spec.head_dim, spec.coupling.channels, spec.coupling.bits);

  SideCodebook book(bool is_v) const {
    return spec.codebooks->Side(spec.layer, place.kv_head, is_v);
  }
  int row_at(bool is_v, int token) const {
    return (is_v ? at.v_codes : at.k_codes) + token * at.row_bytes;
  }

  void QuantizeSide(const Side& side, bool is_v, std::byte* block) const {
    const Coupling& coupling = spec.coupling;
    const BlockTurns turns(spec.codebooks->rotation(), place.token);
    const float* by_channel = book(is_v).by_channel;
    std::vector<float> x(spec.head_dim);
    std::vector<std::uint32_t> codes(spec.head_dim / coupling.channels);
    for (int token = 0; token < kBlockTokens; ++token) {
      for (int channel = 0; channel < spec.head_dim; ++channel)
        x[channel] = side.at(token, channel);
      if (!is_v) turns.Back(token, x.data());
      for (std::size_t group = 0; group < codes.size(); ++group) {
        codes[group] = NearestCentroid(
            x.data() + group * coupling.channels,
            by_channel + group * coupling.channels * coupling.centroids(), coupling);
      }
      PutRow(codes.data(), spec.head_dim, coupling, block + row_at(is_v, token));
    }
  }

  // [64, head_dim], keys after RoPE.
  void ReadSide(const std::byte* block, bool is_v, float* out) const {
    const BlockTurns turns(spec.codebooks->rotation(), place.token);
    for (int token = 0; token < kBlockTokens; ++token, out += spec.head_dim) {
      GetRow(block + row_at(is_v, token), spec.head_dim, spec.coupling, book(is_v).by_code, out);
      if (!is_v) turns.Forward(token, out);
    }
  }
};

bool Quantize(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const CoupledBlock coupled{spec, rows.place};
  coupled.QuantizeSide(KSide(rows), false, block);
  coupled.QuantizeSide(VSide(rows), true, block);
  return true;
}

void Dequantize(const std::byte* block, const BlockSpec& spec, const BlockPlace& place, float* k,
                float* v) {
  const CoupledBlock coupled{spec, place};
  coupled.ReadSide(block, false, k);
  coupled.ReadSide(block, true, v);
}

void Attend(const std::byte* block, const BlockSpec& spec, const BlockPlace& place,
            const QueryGroup& group, const SoftmaxState& state) {
  const int d = spec.head_dim;
  std::vector<float> k(std::size_t{kBlockTokens} * d), v(k.size());
  Dequantize(block, spec, place, k.data(), v.data());
  for (int head = 0; head < group.heads; ++head) {
    const float* q = group.q + static_cast<std::ptrdiff_t>(head) * d;
    float scores[kBlockTokens];
    for (int token = 0; token < kBlockTokens; ++token) {
      float sum = 0;
      for (int channel = 0; channel < d; ++channel) sum += q[channel] * k[token * d + channel];
      scores[token] = sum;
    }
    AddTokens(scores, kBlockTokens, head, group, state,
              [&](int token, int channel) { return v[token * d + channel]; });
  }
}

}  // namespace

const ReferenceKind& CoupledReference() {
  static constexpr ReferenceKind kKind = {
      Quantize,
      [](const Side&, const BlockSpec&, bool) -> std::optional<BlockFault> {
        return std::nullopt;  // a centroid is near to everything
      },
      Attend, Dequantize};
  return kKind;
}

}  // namespace kvferry::codec::cpu
