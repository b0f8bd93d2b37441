#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace kvferry::model {

class GgufFile;

// A token found in the text before pre-tokenization, as it is written.
struct AddedToken {
  std::int32_t id;
  std::string text;
  bool special;  // a mark of the format: gives no text, is recognized only when asked for
};

// What a tokenizer file says, whatever its format.
struct TokenizerSpec {
  std::vector<std::string> tokens;  // by id, in the byte alphabet; empty: no such id
  std::vector<std::string> merges;  // "left right", best first
  std::vector<AddedToken> added;
  std::vector<std::string> expressions;  // of the PreTokenizer
  bool nfc = false;                      // text is normalized first
  bool whole_pieces_first = false;       // Llama 3: a piece that is a token is not merged
  std::optional<std::int32_t> unknown;   // stands for a byte without a token
  std::optional<std::int32_t> bos;       // put in front of every text
  std::vector<std::int32_t> end_tokens;
  std::string chat_template;
};

// kInvalidArgument: missing or inconsistent fields, by name. kUnimplemented: another kind of
// tokenizer, pre-tokenizer or normalizer, by name.
absl::StatusOr<TokenizerSpec> TokenizerSpecFromGguf(const GgufFile& file);
absl::StatusOr<TokenizerSpec> TokenizerSpecFromJson(std::string_view tokenizer_json);
// tokenizer.json, and beside it tokenizer_config.json, generation_config.json and
// chat_template.jinja where they exist.
absl::StatusOr<TokenizerSpec> TokenizerSpecFromDirectory(const std::string& directory);

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec);

// Special tokens that end an answer in every model that has them, whatever else its files name.
bool EndsAnswer(std::string_view special_token);

}  // namespace kvferry::model
