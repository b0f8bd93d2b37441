#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"
#include "model/model.h"

namespace kvferry::bench {

// What a prefill worker computes, in this process and without a hand-off: a model of random weights
// and its prompts. Thread: one.
class PlainPrefill {
 public:
  struct Options {
    std::string config;  // config.json of the shape
    std::string device;  // "cpu" or "cuda:N"
    model::ComputeType compute = model::ComputeType::kBf16;
    int chunk_tokens = 0;  // per model call
  };
  // Errors are the model's and the device's.
  static absl::StatusOr<std::unique_ptr<PlainPrefill>> Load(const Options& options);

  const model::ModelConfig& config() const { return model_->config(); }
  // The seconds that a worker counts as model time: from the first step to the first token.
  //   type: as which K and V are kept.
  absl::StatusOr<double> Run(std::span<const std::int32_t> ids, codec::Raw16 type);

 private:
  explicit PlainPrefill(int chunk_tokens) : chunk_tokens_(chunk_tokens) {}

  const int chunk_tokens_;
  std::unique_ptr<kernels::Stream> stream_;  // of the model; null on CPUs
  std::unique_ptr<model::Model> model_;
};

}  // namespace kvferry::bench
