#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace kvferry::bench {

// What the exact model did on exact caches, step by step: shown to a further lossy cache without
// running it again.
struct ProbeTrace {
  struct Layer {
    std::vector<std::uint16_t> k, v;  // [sequences, kv_heads, head_dim], of the new token
    std::vector<float> q, out;        // [sequences, q_heads, head_dim]; of compared steps only
  };
  struct Step {
    std::vector<Layer> layers;
    std::uint32_t check = 0;  // AttentionProbe's, after the step
  };
  std::vector<Step> steps;
};

// Runs the exact model on an exact cache, and shows the same queries, keys and values to a lossy
// cache: how far its attention output is from the exact one, layer by layer. Thread: one at a time.
class AttentionProbe {
 public:
  virtual ~AttentionProbe() = default;

  // One decode step of all sequences; with `compare` the outputs are compared.
  virtual absl::Status Step(std::span<const std::int32_t> tokens, bool compare) = 0;
  // CRC32C of the logits of the exact caches, [sequences, vocabulary] after each step so far.
  std::uint32_t check() const { return check_; }
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
  void AddToCheck(std::span<const float> logits);
  void set_check(std::uint32_t check) { check_ = check; }

 private:
  struct Squares {
    double difference = 0, exact = 0;
  };

  const std::size_t layers_;
  const std::size_t width_;
  std::vector<Squares> squares_;  // [sequence, layer]
  std::uint32_t check_ = 0;
};

}  // namespace kvferry::bench
