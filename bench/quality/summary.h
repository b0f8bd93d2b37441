#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/record.h"
#include "bench/quality/statistics.h"
#include "kvcodec/codec.h"
#include "kvcodec/plan.h"

namespace kvferry::bench {

// One row of the table: a codec over all passages.
struct Summary {
  codec::Codec codec;
  std::size_t passages = 0, positions = 0;
  Interval perplexity;
  Interval ratio;  // of perplexities, to the exact cache (codec fp16) at the same positions
  Interval kl;     // mean, nats
  double kl_p99 = 0, kl_max = 0;
  double agreement = 0;       // of the likeliest token, 0..1
  double sure_agreement = 0;  // where the exact model is sure; 1 where it never is
  double top5 = 0;            // share of the exact model's 5 likeliest tokens among its own 5
  double greedy_prefix = 0;   // median over passages
  int greedy_tokens = 0;
  Interval trajectory_kl;  // mean along its own greedy answers, nats; 0 without greedy tokens
  std::vector<double> attention_error;  // by layer, mean over passages
  double wire_bytes_per_token = 0, resident_bytes_per_token = 0;
  double block_bits = 0;     // per value of a compressed block, scales and mins counted
  double wire_bits = 0;      // per value of the prompt's hand-off, sinks and window counted
  double resident_bits = 0;  // per value of the cache after the last token, the same
  double seconds = 0;        // that it took to measure

  double mean_attention_error() const;
};

struct SummaryInput {
  codec::Codec codec;
  std::span<const Record> records;        // at least one
  std::span<const Record> exact_records;  // of the exact cache, same passages in the same order
  codec::CacheGeometry geometry;
  int prompt_tokens = 0;
  std::uint64_t seed = 0;  // of the bootstrap
};

// kFailedPrecondition: a lossy codec whose divergence is exactly 0 everywhere was bypassed.
absl::StatusOr<Summary> Summarize(const SummaryInput& input);

nlohmann::json ToJson(const Interval& interval);
nlohmann::json ToJson(const Summary& summary);

}  // namespace kvferry::bench
