#pragma once

#include <optional>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry {

// The number of the GPU that a device name means: nullopt for "cpu", N for "cuda:N".
// kInvalidArgument: another name.
absl::StatusOr<std::optional<int>> GpuOrdinal(std::string_view device);

}  // namespace kvferry
