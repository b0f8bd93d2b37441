#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::bench {

// A run of tokens of the text: a prompt, then the tokens that follow it in truth.
struct Passage {
  int number = 0;  // of passages of the same length, from the text's beginning
  std::span<const std::int32_t> tokens;
};

// `count` passages of `length` tokens, evenly spread over the text; twice as many are these and as
// many between. The tokens outlive them. kInvalidArgument: the text is too short, says for how many
// it is enough.
absl::StatusOr<std::vector<Passage>> SpreadPassages(std::span<const std::int32_t> text, int length,
                                                    int count);

}  // namespace kvferry::bench
