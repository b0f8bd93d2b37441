#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::model {

// Cuts text into the pieces that BPE never merges across. Immutable. Thread: any.
class PreTokenizer {
 public:
  // Regular expressions, applied one after the other: each cuts every piece of the one before into
  // its matches and what stands between them, and sees nothing outside of that piece. Syntax of
  // PCRE2 with Unicode properties; \s and \S mean White_Space, as in the engine of the `tokenizers`
  // package. kInvalidArgument names the expression that does not compile.
  static absl::StatusOr<PreTokenizer> Create(std::span<const std::string> expressions);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // text: valid UTF-8. kInvalidArgument: matching took more steps or memory than a real
  // pre-tokenizer's expression ever does.
  absl::Status Split(std::string_view text,
                     absl::FunctionRef<void(std::string_view piece)> on_piece) const;

 private:
  class Step;
  explicit PreTokenizer(std::vector<std::unique_ptr<Step>> steps);
  absl::Status SplitFrom(std::size_t step, std::string_view text,
                         absl::FunctionRef<void(std::string_view piece)> on_piece) const;

  std::vector<std::unique_ptr<Step>> steps_;
};

// GPT-2's own expression: what "ByteLevel" with use_regex stands for.
extern const char kGpt2Expression[];

// The expressions of a GGUF file's tokenizer.ggml.pre. kUnimplemented lists the known names.
absl::StatusOr<std::vector<std::string>> PreTokenizerExpressions(std::string_view gguf_pre);

}  // namespace kvferry::model
