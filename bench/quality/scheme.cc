#include "bench/quality/scheme.h"

#include <climits>

#include "absl/strings/str_cat.h"
#include "kvcodec/plan.h"

namespace kvferry::bench {
namespace {

constexpr int kKiviResidual = 128;

std::string Describe(const TensorScheme& s) {
  return absl::StrCat(s.bits, "/", static_cast<int>(s.axis), "/", s.group, "/",
                      static_cast<int>(s.levels), "/", s.scale_bits, "/", s.outliers, "/",
                      s.block_means, s.rotated, s.before_rope);
}

// Scale and min, or scale alone.
int ScaleCount(TensorScheme::Levels levels) {
  return levels == TensorScheme::Levels::kNf4Table ? 1 : 2;
}

}  // namespace

std::string SimulatedCodec::Description() const {
  if (production.has_value()) {
    return absl::StrCat("codec ", absl::Hex(production->Hash()), ", ", only_layer, ", ", only_head);
  }
  return absl::StrCat("K ", Describe(k), ", V ", Describe(v), ", ", static_cast<int>(rule), ", ",
                      window.sinks, "/", window.recent, ", ", only_layer, ", ", only_head);
}

int CodesFrom(const SimulatedCodec& codec, bool is_key, int token) {
  switch (codec.rule) {
    case FlushRule::kBlocks: {
      const codec::WindowSpec& window =
          codec.production.has_value() ? codec.production->window : codec.window;
      if (token < window.sinks) return INT_MAX;
      const int block = (token - window.sinks) / codec::kBlockTokens;
      return window.sinks + window.recent + codec::kBlockTokens * (block + 1);
    }
    case FlushRule::kKivi:
      return is_key ? kKiviResidual * (token / kKiviResidual + 1) : token + kKiviResidual + 1;
    case FlushRule::kAtOnce:
      return token + 1;
  }
  return INT_MAX;
}

double CodeBits(const TensorScheme& scheme, int block_tokens) {
  if (scheme.bits == 16) return 16;
  double bits = scheme.bits +
                static_cast<double>(ScaleCount(scheme.levels)) * scheme.scale_bits / scheme.group;
  if (scheme.block_means) bits += 16.0 / block_tokens;
  bits += scheme.outliers * 32;  // where it is, 16 bits, and the value
  return bits;
}

}  // namespace kvferry::bench
