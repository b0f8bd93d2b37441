#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace kvferry {

// Debian's abseil is built with a string_view of its own; this is the one place that crosses over.
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace kvferry
