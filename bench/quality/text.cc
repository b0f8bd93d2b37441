#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/quality/quality.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

namespace fs = std::filesystem;

// Of a file: itself. Of a folder: the Python sources below it.
absl::StatusOr<std::vector<fs::path>> FilesOf(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::vector<fs::path>{path};
  std::vector<fs::path> files;
  for (fs::recursive_directory_iterator at(path, error), end; !error && at != end;
       at.increment(error)) {
    if (at->path().extension() == ".py" && at->is_regular_file()) files.push_back(at->path());
  }
  if (error || files.empty()) {
    return absl::NotFoundError(absl::StrCat("no .py files below '", path.string(), "'",
                                            error ? ": " + error.message() : ""));
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

absl::StatusOr<Text> ReadText(std::span<const std::string> paths,
                              const model::Tokenizer& tokenizer) {
  Text text;
  std::string bytes;
  for (const std::string& path : paths) {
    KVF_ASSIGN_OR_RETURN(const std::vector<fs::path> files, FilesOf(path));
    for (const fs::path& name : files) {
      std::ifstream file(name, std::ios::binary);
      if (!file) {
        return absl::NotFoundError(absl::StrCat("cannot read the text '", name.string(), "'"));
      }
      bytes.append(std::istreambuf_iterator<char>(file), {});
    }
    const fs::path last = path.ends_with('/') ? fs::path(path).parent_path() : fs::path(path);
    absl::StrAppend(&text.name, text.name.empty() ? "" : ", ", last.filename().string());
  }
  text.check = absl::StrFormat("%08x", Crc32c(std::as_bytes(std::span(bytes))));
  KVF_ASSIGN_OR_RETURN(text.tokens, tokenizer.Encode(bytes, /*parse_special=*/false));
  return text;
}

}  // namespace kvferry::bench
