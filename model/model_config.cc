#include "model/model_config.h"

#include <isa-l/crc64.h>

#include "absl/strings/str_cat.h"

namespace kvferry::model {
namespace {

// One bound of one field.
struct Range {
  std::string_view field;
  int value;
  int low;
  int high;
};

}  // namespace

std::uint64_t ModelConfig::RopeHash() const {
  std::uint64_t hash = 0;
  const auto add = [&hash](const auto& value) {
    hash = crc64_ecma_refl(hash, reinterpret_cast<const unsigned char*>(&value), sizeof(value));
  };
  add(head_dim);
  add(rope_base);
  add(rope_scaling.has_value());
  if (rope_scaling) {
    add(rope_scaling->factor);
    add(rope_scaling->low_freq_factor);
    add(rope_scaling->high_freq_factor);
    add(rope_scaling->original_max_context);
  }
  for (const float factor : rope_factors) add(factor);
  return hash;
}

absl::Status ModelConfig::Validate(const std::string& path) const {
  const Range ranges[] = {
      {"layers", layers, 1, 1024},
      {"hidden size", hidden, 2, 1 << 17},
      {"intermediate size", intermediate, 1, 1 << 20},
      {"query heads", q_heads, 1, 1024},
      {"KV heads", kv_heads, 1, 1024},
      {"head_dim", head_dim, 2, 1024},
      {"vocabulary", vocabulary, 1, 1 << 22},
      {"context length", max_context_tokens, 1, 1 << 24},
  };
  for (const Range& range : ranges) {
    if (range.value < range.low || range.value > range.high) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::string(range.field), " is ",
                                                     range.value, ", allowed are ", range.low,
                                                     " to ", range.high));
    }
  }
  const auto invalid = [&path](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", parts...));
  };
  if (head_dim % 2 != 0) return invalid("head_dim is ", head_dim, ", an odd number");
  if (q_heads % kv_heads != 0) {
    return invalid(q_heads, " query heads are no multiple of ", kv_heads, " KV heads");
  }
  if (!(rms_epsilon > 0) || rms_epsilon > 0.1f) return invalid("RMS epsilon is ", rms_epsilon);
  if (!(rope_base >= 1) || rope_base > 1e12f) return invalid("RoPE base is ", rope_base);
  if (rope_scaling) {
    const Llama3RopeScaling& scaling = *rope_scaling;
    if (!(scaling.factor >= 1) || !(scaling.low_freq_factor > 0) ||
        !(scaling.high_freq_factor > scaling.low_freq_factor) || scaling.original_max_context < 1) {
      return invalid("llama3 RoPE scaling with factor ", scaling.factor, ", low_freq_factor ",
                     scaling.low_freq_factor, ", high_freq_factor ", scaling.high_freq_factor,
                     ", original context ", scaling.original_max_context,
                     " makes no frequencies: want factor >= 1 and 0 < low < high");
    }
  }
  if (!rope_factors.empty() && rope_factors.size() != static_cast<std::size_t>(head_dim / 2)) {
    return invalid("has ", rope_factors.size(), " RoPE factors, head_dim wants ", head_dim / 2);
  }
  for (const float factor : rope_factors) {
    if (!(factor > 0)) return invalid("a RoPE factor is ", factor);
  }
  for (const int token : end_tokens) {
    if (token < 0 || token >= vocabulary) {
      return invalid("end token ", token, " is outside the vocabulary of ", vocabulary);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvferry::model
