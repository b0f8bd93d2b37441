#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "model/model.h"
#include "model/weight_files.h"

namespace kvferry::model {

// A Model whose weights, activations, K and V are in the memory of `options.device`: "cuda:N", or
// "cpu" as the reference that needs no GPU (on CPUs the Transformer is several times faster).
// kUnavailable: LibTorch here has no CUDA, or there is no such GPU.
absl::StatusOr<std::unique_ptr<Model>> LoadDeviceModel(const WeightFiles& files,
                                                       const LoadOptions& options);

}  // namespace kvferry::model
