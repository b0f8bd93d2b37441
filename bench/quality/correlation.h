#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/measure.h"

namespace kvferry::bench {

// How the channels of a head hang together, mean over the heads of a layer.
struct Correlation {
  double mean = 0;  // of |correlation| of two different channels
  // Bits per value that the best linear transform of a head's channels saves a quantizer of normal
  // values: half the difference of the mean logarithms of variances and of eigenvalues.
  double gain_bits = 0;
};

struct LayerCorrelations {
  Correlation keys_before_rope, keys, values;
};

// Gathers the K and V of prompts. Thread: one at a time.
class Correlations {
 public:
  static absl::StatusOr<std::unique_ptr<Correlations>> Create(const Device& device);
  virtual ~Correlations() = default;

  virtual absl::Status Add(const ExactPassage& passage) = 0;
  // By layer. At least one passage, and more tokens than a head has channels.
  virtual absl::StatusOr<std::vector<LayerCorrelations>> Layers() const = 0;
};

}  // namespace kvferry::bench
