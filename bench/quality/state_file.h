#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/json_lines.h"
#include "bench/quality/record.h"

namespace kvferry::bench {

// The records of a run in a file, one per passage and codec. Thread: one at a time.
class StateFile {
 public:
  // `run`: all that a record depends on beside passage and codec. Errors as JsonLines::Open;
  // kDataLoss: a line that is no record.
  static absl::StatusOr<std::unique_ptr<StateFile>> Open(const std::string& path,
                                                         const nlohmann::json& run);

  // Null: not measured yet. Valid until the next Append.
  const Record* Find(int passage, const std::string& codec, const std::string& codec_hash) const;
  // Takes the place of an earlier record of the same passage and codec.
  absl::Status Append(const Record& record);

 private:
  explicit StateFile(std::unique_ptr<JsonLines> file) : file_(std::move(file)) {}
  void Keep(Record record);

  std::unique_ptr<JsonLines> file_;
  std::map<std::pair<int, std::string>, Record> records_;  // by passage and codec
};

}  // namespace kvferry::bench
