#pragma once

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::bench {

// Results as JSON lines, so that a run that was stopped goes on where it was: first a line that
// says what run it is, then one object each. Thread: one at a time.
class JsonLines {
 public:
  // Reads what is there, or begins a new file. `run`: all that a result depends on beside what it
  // says itself. A last line without its end (the run was killed in it) is cut off.
  // kFailedPrecondition: the file is of another run, names the first difference. kDataLoss: a line
  // that is no object. kInternal: cannot read or write.
  static absl::StatusOr<std::unique_ptr<JsonLines>> Open(const std::string& path,
                                                         const nlohmann::json& run);

  // Those that were there, the first line not counted.
  const std::vector<nlohmann::json>& lines() const { return lines_; }
  // With the system when it returns: a killed process loses nothing.
  absl::Status Append(const nlohmann::json& json);
  // kDataLoss for the line lines()[index].
  absl::Status Damaged(std::size_t index, const absl::Status& why) const;

 private:
  using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  JsonLines(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}

  const std::string path_;
  File file_;
  std::vector<nlohmann::json> lines_;
};

}  // namespace kvferry::bench
