#include "router/text_stream.h"

#include <utility>

#include "common/status_macros.h"

namespace kvferry::router {

absl::StatusOr<TextStream> TextStream::Create(const model::Tokenizer& tokenizer,
                                              std::span<const std::string> stop) {
  KVF_ASSIGN_OR_RETURN(model::StopMatcher stops, model::StopMatcher::Create(stop));
  return TextStream(tokenizer, std::move(stops));
}

absl::StatusOr<model::StopMatcher::Result> TextStream::Push(std::int32_t id) {
  KVF_ASSIGN_OR_RETURN(const std::string text, detokenizer_.Push(id));
  return stops_.Push(text);
}

std::string TextStream::Finish() {
  std::string text = stops_.Push(detokenizer_.Finish()).text;
  return text + stops_.Finish();
}

}  // namespace kvferry::router
