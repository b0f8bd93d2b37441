#include "bench/quality/state_file.h"

#include "common/status_macros.h"

namespace kvferry::bench {

absl::StatusOr<std::unique_ptr<StateFile>> StateFile::Open(const std::string& path,
                                                           const nlohmann::json& run) {
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<JsonLines> file, JsonLines::Open(path, run));
  std::unique_ptr<StateFile> state(new StateFile(std::move(file)));
  const std::vector<nlohmann::json>& lines = state->file_->lines();
  for (std::size_t i = 0; i < lines.size(); ++i) {
    absl::StatusOr<Record> record = RecordFromJson(lines[i]);
    if (!record.ok()) return state->file_->Damaged(i, record.status());
    state->Keep(*std::move(record));
  }
  return state;
}

const Record* StateFile::Find(int passage, const std::string& codec,
                              const std::string& codec_hash) const {
  const auto found = records_.find({passage, codec});
  if (found == records_.end() || found->second.codec_hash != codec_hash) return nullptr;
  return &found->second;
}

absl::Status StateFile::Append(const Record& record) {
  KVF_RETURN_IF_ERROR(file_->Append(ToJson(record)));
  Keep(record);
  return absl::OkStatus();
}

void StateFile::Keep(Record record) {
  std::pair<int, std::string> key(record.passage, record.codec);
  records_.insert_or_assign(std::move(key), std::move(record));
}

}  // namespace kvferry::bench
