#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "bench/quality/device.h"

namespace kvferry::bench {

// GPU `gpu`, with a stream of its own for all of it. options.device and options.stream are not
// looked at. kUnavailable: no such GPU. kResourceExhausted: its memory.
absl::StatusOr<std::unique_ptr<Device>> OpenGpuDevice(model::LoadOptions options, int gpu);

}  // namespace kvferry::bench
