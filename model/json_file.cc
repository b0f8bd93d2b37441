#include "model/json_file.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "model/mapped_file.h"

namespace kvferry::model {
namespace {

// Trees deeper than this are hostile: the library frees them recursively.
constexpr int kMaxDepth = 64;

bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& what, std::string_view text) {
  if (TooDeep(text)) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is nested deeper than ", kMaxDepth));
  }
  try {
    auto parsed = nlohmann::json::parse(text);
    if (!parsed.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(what, " is not a JSON object"));
    }
    return parsed;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not JSON: ", error.what()));
  }
}

absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path) {
  KVF_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  const auto bytes = file.bytes();
  return ParseJsonObject(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace kvferry::model
