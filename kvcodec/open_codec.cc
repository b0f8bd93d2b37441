#include "kvcodec/open_codec.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvcodec/codebooks.h"
#include "kvcodec/profile.h"

namespace kvferry::codec {
namespace {

constexpr absl::string_view kCodebooks = "codebooks=";
constexpr std::size_t kHashDigits = 16;

// Whether a parameter of a codec is codebooks in a file; `path` is then theirs.
bool IsCodebooksFile(absl::string_view parameter, absl::string_view& path) {
  std::uint64_t hash = 0;
  path = parameter;
  return absl::ConsumePrefix(&path, kCodebooks) &&
         !(path.size() == kHashDigits && absl::SimpleHexAtoi(path, &hash));
}

// Base name and parameters, of all but profiles.
std::pair<absl::string_view, absl::string_view> SplitName(absl::string_view name) {
  if (absl::StartsWith(name, ToAbsl(kProfilePrefix))) return {name, {}};
  return absl::StrSplit(name, absl::MaxSplits(':', 1));
}

}  // namespace

absl::StatusOr<Codec> OpenCodec(std::string_view name) {
  absl::string_view path = ToAbsl(name);
  if (absl::ConsumePrefix(&path, ToAbsl(kProfilePrefix)) && absl::EndsWith(path, ".json")) {
    return OpenProfileCodec(std::string(path));
  }
  const std::string codebooks = CodebooksPath(name);
  if (codebooks.empty()) return FindCodec(name);
  KVF_ASSIGN_OR_RETURN(std::shared_ptr<const Codebooks> books, Codebooks::Open(codebooks));
  const auto [base, parameters] = SplitName(ToAbsl(name));
  std::vector<std::string> by_hash;
  for (const absl::string_view parameter : absl::StrSplit(parameters, ',')) {
    absl::string_view file;
    by_hash.emplace_back(IsCodebooksFile(parameter, file)
                             ? absl::StrCat(kCodebooks, absl::Hex(books->hash(), absl::kZeroPad16))
                             : std::string(parameter));
  }
  KVF_ASSIGN_OR_RETURN(Codec codec,
                       FindCodec(absl::StrCat(base, ":", absl::StrJoin(by_hash, ","))));
  if (books->shape().coupling != codec.coupling) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", codec.name, ": its codebooks are of cq-",
                     books->shape().coupling.channels, "c", books->shape().coupling.bits, "b"));
  }
  codec.codebooks = std::move(books);
  return codec;
}

std::string CodebooksPath(std::string_view name) {
  for (const absl::string_view parameter : absl::StrSplit(SplitName(ToAbsl(name)).second, ',')) {
    absl::string_view path;
    if (IsCodebooksFile(parameter, path)) return std::string(path);
  }
  return std::string();
}

}  // namespace kvferry::codec
