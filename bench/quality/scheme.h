#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"

// Ways to lose bits of K and V that no production codec has to have: what the report on where the
// information is compares (docs/quality.md). Plain data.
namespace kvferry::bench {

// How one of K and V is made into codes and back.
struct TensorScheme {
  enum class Axis {
    kToken,    // a scale for `group` channels of one token
    kChannel,  // a scale for `group` tokens of one channel
    kHeads,    // a scale for `group` values of the tokens' vectors of all heads, one after another
  };
  enum class Levels {
    kMinMax,    // uniform between the smallest and the largest value (KIVI, arXiv 2402.02750)
    kClipped,   // uniform, of a range that is shrunk to the least squared error
    kLloydMax,  // of the normal distribution of the group's mean and deviation
    kNf4Table,  // the 16 levels of nqkv-nf4, of the largest magnitude (arXiv 2505.16210)
  };

  int bits = 16;  // 16: nothing is lost
  Axis axis = Axis::kToken;
  int group = 32;
  Levels levels = Levels::kMinMax;
  int scale_bits = 16;       // of scales, and of mins; 8: E4M3-like scales and integer zero points
  double outliers = 0;       // share of a block's values that stay exact: those farthest from their
                             // channel's mean
  bool block_means = false;  // each block's channel means are kept apart, in 16 bits
  bool rotated = false;      // Walsh-Hadamard over the channels of a head
  bool before_rope = false;  // keys as they are before their rotation

  bool operator==(const TensorScheme&) const = default;
};

// When tokens become codes.
enum class FlushRule {
  kBlocks,  // ours: 64 at once, sinks and the newest in 16 bits (kvcodec/plan.h)
  kKivi,    // the paper's: keys 128 at once, values one by one when 128 newer ones are there
  kAtOnce,  // every token as soon as it has been attended on; no window
};

struct SimulatedCodec {
  std::string group, name;
  TensorScheme k, v;
  FlushRule rule = FlushRule::kBlocks;
  codec::WindowSpec window{.sinks = 4, .recent = 128};  // of kBlocks
  // In place of k and v: the codec's own bytes, made and read by the CPU backend. `rule` and
  // `window` are its own.
  std::optional<codec::Codec> production;
  int only_layer = -1;  // everything else is exact
  int only_head = -1;   // KV head

  // What makes two results the same.
  std::string Description() const;
};

// The same rule for one position: from how many tokens before a query on is key or value `token`
// read as codes? INT_MAX: never.
int CodesFrom(const SimulatedCodec& codec, bool is_key, int token);

// Mean bits per value, with scales, means and outliers, of values that are codes.
double CodeBits(const TensorScheme& scheme, int block_tokens);

// The rows of the report: those of `groups`, or of all groups when it is empty. kNotFound names
// the groups. layers, kv_heads: of the model.
absl::StatusOr<std::vector<SimulatedCodec>> ReportRows(const std::vector<std::string>& groups,
                                                       int layers, int kv_heads);

}  // namespace kvferry::bench
