#pragma once

#include <string>
#include <string_view>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvferry::cli {

// How far a long command is: one line on stderr that is written over; where that is no terminal, a
// line whenever something new begins. Thread: one at a time.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { End(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void Show(std::string_view what, int done, int all);
  void End();

 private:
  const bool terminal_;
  const absl::Time start_ = absl::Now();
  absl::Time shown_ = absl::InfinitePast();
  std::string what_;
};

}  // namespace kvferry::cli
