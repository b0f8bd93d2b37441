#include "model/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

// By number of matched bytes m: the longest proper border of the first m bytes.
std::vector<std::uint16_t> Borders(std::string_view text) {
  std::vector<std::uint16_t> borders(text.size() + 1, 0);
  std::uint16_t border = 0;
  for (std::size_t matched = 2; matched <= text.size(); ++matched) {
    const char byte = text[matched - 1];
    while (border > 0 && text[border] != byte) border = borders[border];
    if (text[border] == byte) ++border;
    borders[matched] = border;
  }
  return borders;
}

}  // namespace

absl::StatusOr<StopMatcher> StopMatcher::Create(std::span<const std::string> stops) {
  if (stops.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop has ", stops.size(), " strings; at most ", kMaxStops, " are allowed"));
  }
  std::vector<Stop> automata;
  for (std::size_t i = 0; i < stops.size(); ++i) {
    const std::string name = absl::StrCat("stop[", i, "]");
    if (stops[i].empty() || stops[i].size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " has ", stops[i].size(), " bytes; allowed are 1 to ", kMaxStopBytes));
    }
    KVF_RETURN_IF_ERROR(CheckUtf8(stops[i], name));
    automata.push_back({stops[i], Borders(stops[i])});
  }
  return StopMatcher(std::move(automata));
}

void StopMatcher::Stop::Advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = fallback[matched];
  if (text[matched] == byte) ++matched;
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  if (stopped_) return {"", true};
  Result result;
  for (const char byte : text) {
    held_.push_back(byte);
    std::size_t longest = 0;
    for (Stop& stop : stops_) {
      stop.Advance(byte);
      if (stop.complete()) longest = std::max(longest, stop.matched);
    }
    if (longest > 0) {
      stopped_ = true;
      result = {held_.substr(0, held_.size() - longest), true};
      held_.clear();
      return result;
    }
  }
  // Text comes in whole characters and stop strings begin with one, so this cuts between two.
  std::size_t hold = 0;
  for (const Stop& stop : stops_) hold = std::max(hold, stop.matched);
  result.text = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, std::string()); }

}  // namespace kvferry::model
