#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "bench/quality/device.h"

namespace kvferry::bench {

// Loads options.path on options.device: "cpu" with options.threads, or "cuda:N". options.stream is
// not looked at. kInvalidArgument: another name. kUnimplemented: this program was built without
// CUDA. kUnavailable: no such GPU. Otherwise as model::Model::Load.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const model::LoadOptions& options);

}  // namespace kvferry::bench
