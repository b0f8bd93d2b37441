#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcodec/codebooks.h"
#include "model/kv_gradients.h"

// Learns the codebooks of Coupled Quantization (arXiv 2405.03917): for each group of channels the
// centroids of a k-means in which a token weighs as much as the squared gradient of the loss by the
// group's channels.
namespace kvferry::calibrate {

// What one layer's codebooks are learned from. Thread: one at a time.
class LayerSamples {
 public:
  explicit LayerSamples(const codec::CodebookShape& shape);

  // Appends the tokens of a sequence from `first_token` on; its first one is at position 0. Keys
  // and their gradients are turned back to what they were before RoPE. kInvalidArgument: sizes, a
  // value that is not finite; then nothing is appended.
  absl::Status Add(const codec::KeyRotation& rotation, const model::KvGradient& sequence,
                   int first_token);

  const codec::CodebookShape& shape() const { return shape_; }

  // Of one group of channels.
  struct Group {
    std::vector<float> vectors;  // [n, channels of a group]
    std::vector<float> weights;  // [n]
  };
  // [head][K, V][group]
  std::span<const Group> groups() const { return groups_; }

 private:
  void Append(const float* values, const float* gradient, int head, bool is_v);

  codec::CodebookShape shape_;
  std::vector<Group> groups_;
};

// |x - x'| / |x| over many vectors, as sums of squares.
struct SquareSums {
  double difference = 0, exact = 0;
  SquareSums& operator+=(const SquareSums& other);
  double error() const;  // 0 of nothing
};

// How far the nearest centroid is from keys, or values; weighted as the samples are.
struct SideErrors {
  SquareSums weighted, plain;
  SideErrors& operator+=(const SideErrors& other);
};

struct LayerCodebooks {
  std::vector<std::uint16_t> centroids;  // fp16, [head][K, V][group][code][channel of the group]
  SideErrors k, v;
};

struct TrainingOptions {
  int iterations = 20;   // of k-means
  bool weighted = true;  // false: all tokens weigh the same in it
  std::uint64_t seed = 1;
  int threads = 1;
};

// The same for the same seed, whatever the number of threads. layer: which stream of random numbers
// it takes. kInvalidArgument: no samples; a centroid that fp16 does not hold.
absl::StatusOr<LayerCodebooks> TrainLayer(const LayerSamples& samples, int layer,
                                          const TrainingOptions& options);

}  // namespace kvferry::calibrate
