#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

// What the commands that measure for long have in common.
namespace kvferry::calibrate {

// kFailedPrecondition: a state file is there, and nobody has said to go on from it.
inline absl::Status CheckState(const std::string& state, bool resume) {
  std::error_code error;
  if (resume || !std::filesystem::exists(state, error)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the state file '", state, "' is there: go on from it with --resume, or remove it"));
}

// What --threads means: 0 is all cores.
inline int ThreadsOf(int flag) {
  return flag > 0 ? flag : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Of a file as a result names it: without the folder, which is this machine's.
inline std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

}  // namespace kvferry::calibrate
