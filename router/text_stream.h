#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "model/stop_matcher.h"
#include "model/tokenizer.h"

namespace kvferry::router {

// Token ids in, text out: whole characters, nothing of a stop string. Thread: one at a time.
class TextStream {
 public:
  // kInvalidArgument: as StopMatcher::Create.
  static absl::StatusOr<TextStream> Create(const model::Tokenizer& tokenizer,
                                           std::span<const std::string> stop);

  // kInvalidArgument: an id outside the vocabulary.
  absl::StatusOr<model::StopMatcher::Result> Push(std::int32_t id);
  // The end of the answer: what was held back. Empty after a stop.
  std::string Finish();

 private:
  TextStream(const model::Tokenizer& tokenizer, model::StopMatcher stops)
      : detokenizer_(tokenizer), stops_(std::move(stops)) {}

  model::Detokenizer detokenizer_;
  model::StopMatcher stops_;
};

}  // namespace kvferry::router
