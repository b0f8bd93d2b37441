#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/record.h"

namespace kvferry::bench {

// The records of a run as JSON lines, so that a run that was stopped goes on where it was: first a
// line that says what run it is, then one record per passage and codec. Thread: one at a time.
class StateFile {
 public:
  // Reads what is there, or begins a new file. `run`: all that a record depends on beside passage
  // and codec. A last line without its end (the run was killed in it) is cut off.
  // kFailedPrecondition: the file is of another run, names the first difference. kDataLoss: a line
  // that is no record. kInternal: cannot read or write.
  static absl::StatusOr<std::unique_ptr<StateFile>> Open(const std::string& path,
                                                         const nlohmann::json& run);

  // Null: not measured yet. Valid until the next Append.
  const Record* Find(int passage, const std::string& codec, const std::string& codec_hash) const;
  // With the system when it returns: a killed process loses nothing. Takes the place of an earlier
  // record of the same passage and codec.
  absl::Status Append(const Record& record);

 private:
  using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  StateFile(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  absl::Status AppendLine(const nlohmann::json& json);
  void Keep(Record record);

  const std::string path_;
  File file_;
  std::map<std::pair<int, std::string>, Record> records_;  // by passage and codec
};

}  // namespace kvferry::bench
