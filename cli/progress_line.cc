#include "cli/progress_line.h"

#include <unistd.h>

#include <iostream>

#include "absl/strings/str_format.h"

namespace kvferry::cli {

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

void ProgressLine::Show(std::string_view what, int done, int all) {
  const bool fresh = what != what_;
  const absl::Time now = absl::Now();
  if (!fresh && (!terminal_ || now - shown_ < absl::Milliseconds(200))) return;
  what_ = what;
  shown_ = now;
  const std::string text =
      absl::StrFormat("%7.1f s  %s %d/%d", absl::ToDoubleSeconds(now - start_), what_, done, all);
  std::cerr << (terminal_ ? "\r\033[K" : "") << text << (terminal_ ? "" : "\n") << std::flush;
}

void ProgressLine::End() {
  if (terminal_ && !what_.empty()) std::cerr << '\n';
  what_.clear();
}

}  // namespace kvferry::cli
