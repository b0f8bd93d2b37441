#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"

namespace kvferry::codec {

// Smallest, greatest and mean of some numbers.
struct ValueRange {
  double min = 0, max = 0, mean = 0;
};

// One region of a block: where it is and what is in it.
struct RegionDescription {
  std::string name;  // "K codes", "V scales", ...
  std::size_t offset = 0, bytes = 0;
  ValueRange values;        // of the codes or of the fp16 numbers
  std::vector<int> counts;  // of codes up to 4 bits: how often each occurs
  int zeros = 0;            // of scales: groups whose values are all equal
  int not_finite = 0;       // of fp16, bf16 and fp8 numbers: what no quantizer writes
};

struct BlockDescription {
  std::string kind;  // "scalar K 4 bit GK 64, V 4 bit GV 128, head_dim 128"
  std::size_t bytes = 0;
  double bits_per_value = 0;  // scales included
  std::vector<RegionDescription> regions;
};

// "scalar K 4 bit GK 64, V 2 bit GV 64, head_dim 64", "raw16 fp16, head_dim 64".
std::string SpecText(const BlockSpec& spec);

// Explains one block of one KV head, for people and for `kvferry inspect`. The bytes may be
// anything. kInvalidArgument: the spec is not valid, or the block has another size.
absl::StatusOr<BlockDescription> DescribeBlock(std::span<const std::byte> block,
                                               const BlockSpec& spec);

// The same as lines of text.
std::string ToText(const BlockDescription& block);

}  // namespace kvferry::codec
