#include "bench/quality/passages.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace kvferry::bench {

absl::StatusOr<std::vector<Passage>> SpreadPassages(std::span<const std::int32_t> text, int length,
                                                    int count) {
  const auto all = static_cast<std::int64_t>(text.size()) / length;
  if (count < 1 || count > all) {
    return absl::InvalidArgumentError(absl::StrCat(count, " passages of ", length,
                                                   " tokens: the text has ", text.size(),
                                                   " tokens, enough for ", all));
  }
  std::vector<Passage> passages;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t number = i * all / count;
    passages.push_back({.number = static_cast<int>(number),
                        .tokens = text.subspan(static_cast<std::size_t>(number * length),
                                               static_cast<std::size_t>(length))});
  }
  return passages;
}

}  // namespace kvferry::bench
