#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::model {

// Ends a stream of text at the first of several stop strings, and holds back text for only as long
// as it may become one. The match that is complete first wins (of two that are complete with the
// same byte, the longer), so the result does not depend on how the text was cut into pieces.
// Thread: one at a time.
class StopMatcher {
 public:
  static constexpr std::size_t kMaxStops = 16;
  static constexpr std::size_t kMaxStopBytes = 256;

  // kInvalidArgument: too many, empty, too long or not UTF-8; names which.
  static absl::StatusOr<StopMatcher> Create(std::span<const std::string> stops);

  struct Result {
    std::string text;      // may be given out: whole characters, nothing of a stop string
    bool stopped = false;  // a stop string is complete: everything from its start on is dropped
  };
  // text: whole UTF-8 characters. Nothing comes out after a stop.
  Result Push(std::string_view text);
  // The end of the stream: what was held back.
  std::string Finish();

 private:
  // Knuth, Morris and Pratt's automaton of one stop string.
  struct Stop {
    std::string text;
    std::vector<std::uint16_t> fallback;  // by matched bytes: the next shorter state
    std::size_t matched = 0;              // bytes of `text` that the stream ends with

    void Advance(char byte);
    bool complete() const { return matched == text.size(); }
  };

  explicit StopMatcher(std::vector<Stop> stops) : stops_(std::move(stops)) {}

  std::vector<Stop> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace kvferry::model
