#include "bench/quality/reference_quantize.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>
#include <vector>

#include "bench/quality/passage_tensors.h"
#include "kvcodec/lut.h"

namespace kvferry::bench {
namespace {

constexpr int kMostTableBits = 4;

at::Tensor ToHalfAndBack(const at::Tensor& x) { return x.to(at::kHalf).to(at::kFloat); }

// Up to the next number with three bits after the leading one: a scale in 8 bits, whose exponent
// is taken to fit.
at::Tensor RoundScaleUp(const at::Tensor& scale) {
  const at::Tensor exponent = at::floor(at::log2(scale.clamp_min(1e-30)));
  const at::Tensor step = at::exp2(exponent - 3);
  return at::ceil(scale / step) * step;
}

// Codes of a range, one per group; groups are the last dimension.
at::Tensor Uniform(const at::Tensor& x, const at::Tensor& low, const at::Tensor& high, int bits,
                   int scale_bits) {
  const double levels = (1 << bits) - 1;
  if (scale_bits == 8) {
    const at::Tensor scale = RoundScaleUp((high - low).clamp_min(1e-20) / levels);
    const at::Tensor zero = at::round(low / scale).clamp(-128, 127);
    return (at::round(x / scale - zero).clamp(0, levels) + zero) * scale;
  }
  // docs/format.md: the scale is made against the min as it is stored, and the inverse is rounded.
  const at::Tensor min = ToHalfAndBack(low);
  const at::Tensor scale = ToHalfAndBack((high - min) / levels).clamp_min(0);
  const at::Tensor inverse = at::where(scale == 0, at::zeros_like(scale), 1 / scale);
  return at::round((x - min) * inverse).clamp(0, levels) * scale + min;
}

at::Tensor MinMax(const at::Tensor& x, const TensorScheme& scheme) {
  return Uniform(x, x.amin(-1, true), x.amax(-1, true), scheme.bits, scheme.scale_bits);
}

// The best of ranges that are shrunk at both ends alike, group by group.
at::Tensor Clipped(const at::Tensor& x, const TensorScheme& scheme) {
  const at::Tensor low = x.amin(-1, true), high = x.amax(-1, true);
  const at::Tensor middle = (low + high) / 2, half = (high - low) / 2;
  at::Tensor best, least;
  for (double part = 1; part > 0.45; part -= 0.05) {
    const at::Tensor y =
        Uniform(x, middle - half * part, middle + half * part, scheme.bits, scheme.scale_bits);
    const at::Tensor error = (y - x).square().sum(-1, true);
    if (!best.defined()) {
      best = y;
      least = error;
      continue;
    }
    best = at::where(error < least, y, best);
    least = at::minimum(error, least);
  }
  return best;
}

at::Tensor Nearest(const at::Tensor& x, const at::Tensor& levels) {
  const at::Tensor middles =
      (levels.narrow(0, 1, levels.size(0) - 1) + levels.narrow(0, 0, levels.size(0) - 1)) / 2;
  return levels.index_select(0, at::bucketize(x.contiguous(), middles).flatten()).view(x.sizes());
}

at::Tensor LloydMax(const at::Tensor& x, const TensorScheme& scheme) {
  at::Tensor mean = x.mean(-1, true);
  at::Tensor deviation = (x - mean).square().mean(-1, true).sqrt();
  if (scheme.scale_bits == 8) {
    deviation = RoundScaleUp(deviation.clamp_min(1e-20));
    mean = at::round(mean / deviation * 16).clamp(-128, 127) * deviation / 16;
  } else {
    mean = ToHalfAndBack(mean);
    deviation = ToHalfAndBack(deviation);
  }
  const at::Tensor scaled = (x - mean) / deviation.clamp_min(1e-20);
  return Nearest(scaled, LloydMaxLevels(scheme.bits).to(x.device())) * deviation + mean;
}

at::Tensor Nf4(const at::Tensor& x) {
  const codec::Lut& lut = *codec::FindLut(codec::LutTable::kNf4);
  const at::Tensor levels =
      at::tensor(at::ArrayRef<float>(lut.levels.data(), lut.count())).to(x.device());
  const at::Tensor scale = ToHalfAndBack(x.abs().amax(-1, true));
  return Nearest(x / scale.clamp_min(1e-20), levels) * scale;
}

at::Tensor OfGroups(const at::Tensor& x, const TensorScheme& scheme) {
  switch (scheme.levels) {
    case TensorScheme::Levels::kMinMax:
      return MinMax(x, scheme);
    case TensorScheme::Levels::kClipped:
      return Clipped(x, scheme);
    case TensorScheme::Levels::kLloydMax:
      return LloydMax(x, scheme);
    case TensorScheme::Levels::kNf4Table:
      return Nf4(x);
  }
  return x;
}

// blocks: [heads, blocks, tokens, head_dim].
at::Tensor ByAxis(const at::Tensor& blocks, const TensorScheme& scheme) {
  switch (scheme.axis) {
    case TensorScheme::Axis::kToken:
      return OfGroups(blocks.unflatten(3, {-1, scheme.group}), scheme).flatten(3);
    case TensorScheme::Axis::kChannel: {
      const at::Tensor by_channel = blocks.transpose(2, 3).contiguous();
      return OfGroups(by_channel.unflatten(3, {-1, scheme.group}), scheme)
          .flatten(3)
          .transpose(2, 3);
    }
    case TensorScheme::Axis::kHeads: {
      // [tokens, heads * head_dim] in groups; a last one that is not full has its own scale.
      const at::Tensor by_token = blocks.flatten(1, 2).transpose(0, 1).contiguous();
      const at::Tensor line = by_token.flatten();
      const std::int64_t whole = line.size(0) / scheme.group * scheme.group;
      at::Tensor out =
          OfGroups(line.narrow(0, 0, whole).view({-1, scheme.group}), scheme).flatten();
      if (whole < line.size(0)) {
        out = at::cat(
            {out,
             OfGroups(line.narrow(0, whole, line.size(0) - whole).unsqueeze(0), scheme).flatten()});
      }
      return out.view(by_token.sizes()).transpose(0, 1).reshape(blocks.sizes());
    }
  }
  return blocks;
}

// Those values of each block that are farthest from their channel's mean stay as they are; the
// others do not see them.
at::Tensor WithOutliers(const at::Tensor& blocks, const TensorScheme& scheme) {
  if (scheme.outliers == 0) return ByAxis(blocks, scheme);
  const at::Tensor mean = blocks.mean(2, true);
  const at::Tensor distance = (blocks - mean).abs();
  const auto count = static_cast<std::int64_t>(
      std::ceil(scheme.outliers * static_cast<double>(blocks.size(2) * blocks.size(3))));
  const at::Tensor least =
      std::get<0>(distance.flatten(2).topk(count, -1)).amin(-1, true).unsqueeze(-1);
  const at::Tensor kept = distance >= least;
  return at::where(kept, blocks, ByAxis(at::where(kept, mean, blocks), scheme));
}

at::Tensor Hadamard(std::int64_t size, const at::Tensor& like) {
  at::Tensor h = at::ones({1, 1}, like.options());
  while (h.size(0) < size) {
    h = at::cat({at::cat({h, h}, 1), at::cat({h, -h}, 1)}, 0);
  }
  return h / std::sqrt(static_cast<double>(size));
}

}  // namespace

namespace {

at::Tensor MakeLloydMaxLevels(int bits) {
  const int count = 1 << bits;
  std::vector<double> levels(count);
  for (int i = 0; i < count; ++i) levels[i] = 4.0 * (i + 0.5) / count - 2;
  const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); };
  const auto below = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  for (int round = 0; round < 2000; ++round) {
    for (int i = 0; i < count; ++i) {
      const double from = i == 0 ? -40 : (levels[i - 1] + levels[i]) / 2;
      const double to = i + 1 == count ? 40 : (levels[i] + levels[i + 1]) / 2;
      levels[i] = (density(from) - density(to)) / (below(to) - below(from));
    }
  }
  return at::tensor(at::ArrayRef<double>(levels)).to(at::kFloat);
}

}  // namespace

at::Tensor LloydMaxLevels(int bits) {
  static const std::array<at::Tensor, kMostTableBits> tables = [] {
    std::array<at::Tensor, kMostTableBits> made;
    for (int i = 0; i < kMostTableBits; ++i) made[i] = MakeLloydMaxLevels(i + 1);
    return made;
  }();
  TORCH_CHECK(bits >= 1 && bits <= kMostTableBits, "no table of ", bits, " bits");
  return tables[bits - 1];
}

at::Tensor NearestCentroids(const at::Tensor& x, const codec::Codebooks& books, int layer,
                            bool is_v, const Rotations& rotations) {
  const codec::CodebookShape& shape = books.shape();
  const at::Tensor upright = is_v ? x : TurnBack(x, rotations);
  at::Tensor out = at::empty_like(upright);
  for (int head = 0; head < shape.kv_heads; ++head) {
    // [groups, tokens, channels] and [groups, centroids, channels]
    const at::Tensor groups = upright.select(0, head)
                                  .unflatten(1, {-1, shape.coupling.channels})
                                  .transpose(0, 1)
                                  .contiguous();
    const at::Tensor centroids =
        at::from_blob(const_cast<std::uint16_t*>(books.Side(layer, head, is_v).by_code),
                      {shape.groups(), shape.coupling.centroids(), shape.coupling.channels},
                      at::kHalf)
            .to(x.device(), at::kFloat);
    const at::Tensor codes = at::cdist(groups, centroids).argmin(2);
    const at::Tensor values =
        at::gather(centroids, 1, codes.unsqueeze(2).expand({-1, -1, shape.coupling.channels}));
    out.select(0, head).copy_(values.transpose(0, 1).flatten(1));
  }
  return is_v ? out : Turn(out, rotations);
}

at::Tensor QuantizeDequantize(const at::Tensor& x, const TensorScheme& scheme, int block_tokens,
                              const Rotations& rotations) {
  if (scheme.bits == 16) return x;
  const at::Tensor upright = scheme.before_rope ? TurnBack(x, rotations) : x;
  at::Tensor blocks = upright.unflatten(1, {-1, block_tokens});
  at::Tensor means;
  if (scheme.block_means) {
    means = ToHalfAndBack(blocks.mean(2, true));
    blocks = blocks - means;
  }
  const at::Tensor hadamard = scheme.rotated ? Hadamard(x.size(2), x) : at::Tensor();
  if (scheme.rotated) blocks = at::matmul(blocks, hadamard);
  at::Tensor out = WithOutliers(blocks, scheme);
  if (scheme.rotated) out = at::matmul(out, hadamard);  // it is its own inverse
  if (scheme.block_means) out = out + means;
  out = out.flatten(1, 2);
  return scheme.before_rope ? Turn(out, rotations) : out;
}

}  // namespace kvferry::bench
