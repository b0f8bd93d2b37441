#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/plan.h"

namespace kvferry::bench {

// Runs the exact model on an exact cache, and shows the same queries, keys and values to a lossy
// cache: how far its attention output is from the exact one, layer by layer. Thread: one at a time.
class AttentionProbe {
 public:
  virtual ~AttentionProbe() = default;

  // One decode step of all sequences; with `compare` the outputs are compared. The answer: logits
  // of the exact caches, [sequences, vocabulary], valid until the next call.
  virtual absl::StatusOr<std::span<const float>> Step(std::span<const std::int32_t> tokens,
                                                      bool compare) = 0;
  // |o - o'| / |o| over all steps that were compared, by layer.
  std::vector<double> Errors(std::size_t sequence) const;

 protected:
  // width: of one sequence's output, q_heads * head_dim.
  AttentionProbe(std::size_t sequences, int layers, std::size_t width)
      : layers_(static_cast<std::size_t>(layers)), width_(width), squares_(sequences * layers_) {}

  std::size_t width() const { return width_; }
  std::size_t sequences() const { return squares_.size() / layers_; }
  // Outputs of one layer: [sequences, width].
  void Compare(int layer, std::span<const float> exact, std::span<const float> lossy);

 private:
  struct Squares {
    double difference = 0, exact = 0;
  };

  const std::size_t layers_;
  const std::size_t width_;
  std::vector<Squares> squares_;  // [sequence, layer]
};

}  // namespace kvferry::bench
