#pragma once

#include <vector>

#include "decode_node/step_runner.h"
#include "kvcodec/backend.h"
#include "model/model.h"

namespace kvferry::decode {

// Steps over a cache in host memory. Lets go of cancelled sequences between layers.
class HostStepRunner final : public StepRunner {
 public:
  // All outlive it; the store's memory is the backend's.
  HostStepRunner(model::Model& model, const CacheStore& store, const codec::Backend& backend)
      : model_(model), store_(store), backend_(backend) {}

  int vocabulary() const override { return model_.config().vocabulary; }
  absl::StatusOr<std::span<const float>> Step(const StepBatch& batch) override;

 private:
  class BatchAttention;

  model::Model& model_;
  const CacheStore& store_;
  const codec::Backend& backend_;
  std::vector<float> logits_;  // of the last step
};

}  // namespace kvferry::decode
