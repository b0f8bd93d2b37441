#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace kvferry::cli {

// This process becomes `program`, which stands beside it: one that needs LibTorch, for a command
// that people type. name: as it was typed, what the program calls itself in help and reports.
// Returns only when that fails.
absl::Status Become(const std::string& program, const std::string& name,
                    const std::vector<std::string>& arguments);

}  // namespace kvferry::cli
