#include "common/device_name.h"

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/string_view.h"

namespace kvferry {

absl::StatusOr<std::optional<int>> GpuOrdinal(std::string_view device) {
  if (device == "cpu") return std::nullopt;
  constexpr int kMost = 127;
  absl::string_view number = ToAbsl(device);
  int ordinal = 0;
  if (absl::ConsumePrefix(&number, "cuda:") && absl::SimpleAtoi(number, &ordinal) && ordinal >= 0 &&
      ordinal <= kMost) {
    return ordinal;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device is \"", ToAbsl(device), "\"; allowed is \"cpu\" or \"cuda:N\""));
}

}  // namespace kvferry
