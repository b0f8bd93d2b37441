#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/device.h"
#include "bench/quality/measure.h"
#include "model/tokenizer.h"

namespace kvferry::bench {

// Percent of the prompt before the key. With prompts of 1,024 tokens the last one still stands
// before a window of 128.
inline constexpr std::array kPasskeyDepths = {5, 25, 45, 65, 80};

// A five-digit key hidden in a text whose end asks for it.
struct Passkey {
  std::size_t depth = 0;  // index into kPasskeyDepths
  std::string key;
  std::vector<std::int32_t> prompt;
};

// `per_depth` at each depth, in stretches of the text that are evenly spread; the seed draws the
// keys. All prompts have `prompt_tokens` tokens. kInvalidArgument: the text is too short, or the
// prompts are.
absl::StatusOr<std::vector<Passkey>> MakePasskeys(const model::Tokenizer& tokenizer,
                                                  std::span<const std::int32_t> text,
                                                  int prompt_tokens, int per_depth,
                                                  std::uint64_t seed);

// Whether an answer names the key.
absl::StatusOr<bool> NamesKey(const model::Tokenizer& tokenizer,
                              std::span<const std::int32_t> answer, std::string_view key);

struct PasskeyCounts {
  std::string codec;
  std::array<int, kPasskeyDepths.size()> found{};  // by depth
};
struct PasskeyResult {
  int per_depth = 0;
  PasskeyCounts exact;  // what the exact model finds: only those are asked of a codec
  std::vector<PasskeyCounts> codecs;
};

struct PasskeyInput {
  Device& device;
  const model::Tokenizer& tokenizer;
  std::span<const codec::Codec> codecs;  // that the device has
  std::span<const Passkey> passkeys;
  int batch = 8;  // prompts that step together
};

// Exact prefill and hand-off of each prompt, then greedy decode on the compressed cache. The first
// token of an answer is of the exact prefill, as in serving.
absl::StatusOr<PasskeyResult> RunPasskeys(const PasskeyInput& input,
                                          const Measure::Progress& progress);

}  // namespace kvferry::bench
