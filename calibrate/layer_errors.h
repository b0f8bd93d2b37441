#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/host_device.h"
#include "calibrate/passage_kl.h"
#include "kvcodec/backend.h"

namespace kvferry::calibrate {

// How far a codec moves what attention works with, |x - x'| / |x| each.
struct LayerErrors {
  double keys = 0, values = 0;  // of the compressed tokens
  double scores = 0;            // probabilities after the softmax
  double output = 0;            // of attention
};

// Sums of squares behind LayerErrors, over queries and sequences.
struct ErrorSums {
  struct Squares {
    double difference = 0, exact = 0;
    void Add(double exact_value, double value) {
      difference += (exact_value - value) * (exact_value - value);
      exact += exact_value * exact_value;
    }
  };
  Squares keys, values, scores, output;
  LayerErrors errors() const;
};

// What attention of one layer has to do with.
struct AttentionShape {
  int q_heads = 0, kv_heads = 0, head_dim = 0;
};

// Adds what each of `specs` does to one query over one sequence: its pages are quantized, read
// back, and attended on in fp32 beside the exact ones.
//   exact: pages of raw16 blocks of `raw`. q: [q_heads, head_dim]. sums: one for each spec.
absl::Status AddErrors(const codec::SequenceKv& exact, const codec::BlockSpec& raw, const float* q,
                       const AttentionShape& shape, std::span<const codec::BlockSpec> specs,
                       const codec::Backend& backend, std::span<ErrorSums> sums);

// [layer][codec]: errors at the exact model's queries on the passages, at some of the tokens that
// follow the prompts. The windows are those of the first codec. codecs: of one raw type.
absl::StatusOr<std::vector<std::vector<LayerErrors>>> MeasureErrors(
    bench::HostDevice& device, std::span<const ExactPassage> passages,
    std::span<const codec::Codec> codecs, const PassageOptions& options, const Progress& progress);

}  // namespace kvferry::calibrate
