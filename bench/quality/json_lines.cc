#include "bench/quality/json_lines.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

absl::Status CannotWrite(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write the state file '", path, "'"));
}

// The whole lines of the file; what follows the last line end is cut off.
absl::StatusOr<std::vector<std::string>> ReadLines(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::vector<std::string>();
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file.good() && !file.eof()) {
    return absl::InternalError(absl::StrCat("cannot read the state file '", path, "'"));
  }
  const std::size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (whole < text.size()) {
    text.resize(whole);
    std::filesystem::resize_file(path, whole, error);
    if (error) {
      return absl::InternalError(
          absl::StrCat("cannot cut the state file '", path, "': ", error.message()));
    }
  }
  return std::vector<std::string>(absl::StrSplit(text, '\n', absl::SkipEmpty()));
}

absl::StatusOr<nlohmann::json> ParseLine(const std::string& path, std::size_t number,
                                         const std::string& line) {
  nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) return json;
  return absl::DataLossError(
      absl::StrCat("line ", number, " of the state file '", path,
                   "' is damaged: remove that line or give another --state"));
}

absl::Status CheckSameRun(const std::string& path, const nlohmann::json& was,
                          const nlohmann::json& is) {
  if (!was.contains("run")) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", path, "' is not a state file of this bench: give another --state"));
  }
  for (const auto& [key, value] : is.items()) {
    const nlohmann::json& old = was["run"].contains(key) ? was["run"][key] : nlohmann::json();
    if (old == value) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "the state file '", path, "' is of a run with ", key, " ", old.dump(), ", this one has ",
        value.dump(), ": give another --state, or remove the file"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<JsonLines>> JsonLines::Open(const std::string& path,
                                                           const nlohmann::json& run) {
  KVF_ASSIGN_OR_RETURN(const std::vector<std::string> lines, ReadLines(path));
  File file(std::fopen(path.c_str(), "ab"), &std::fclose);
  if (file == nullptr) return CannotWrite(path);
  std::unique_ptr<JsonLines> all(new JsonLines(path, std::move(file)));
  if (lines.empty()) {
    KVF_RETURN_IF_ERROR(all->Append({{"run", run}}));
    return all;
  }
  for (std::size_t i = 0; i < lines.size(); ++i) {
    KVF_ASSIGN_OR_RETURN(nlohmann::json json, ParseLine(path, i + 1, lines[i]));
    if (i == 0) {
      KVF_RETURN_IF_ERROR(CheckSameRun(path, json, run));
      continue;
    }
    all->lines_.push_back(std::move(json));
  }
  return all;
}

absl::Status JsonLines::Append(const nlohmann::json& json) {
  const std::string line = json.dump() + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() ||
      std::fflush(file_.get()) != 0) {
    return CannotWrite(path_);
  }
  return absl::OkStatus();
}

absl::Status JsonLines::Damaged(std::size_t index, const absl::Status& why) const {
  return absl::DataLossError(
      absl::StrCat("line ", index + 2, " of the state file '", path_, "': ", why.message()));
}

}  // namespace kvferry::bench
