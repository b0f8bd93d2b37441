#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::model {

// Byte-level BPE with special tokens. Immutable. Thread: any.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // From a .gguf file or a Hugging Face directory with tokenizer.json. kInvalidArgument: another
  // kind of tokenizer, by name.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);

  // Ids of `text`; special tokens in it are recognized when `parse_special`. kInvalidArgument: not
  // UTF-8 (with the byte offset).
  virtual absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                           bool parse_special) const = 0;
  // The bytes of one token; special tokens give nothing. kInvalidArgument: no such id.
  virtual absl::StatusOr<std::string> TokenBytes(std::int32_t id) const = 0;
  virtual bool IsSpecial(std::int32_t id) const = 0;
  virtual int vocabulary() const = 0;
  virtual std::span<const std::int32_t> end_tokens() const = 0;
  // The chat template found beside the vocabulary (Jinja text), or empty.
  virtual const std::string& chat_template() const = 0;
};

// Turns a stream of ids into text that is cut only between whole UTF-8 characters. Thread: one at a
// time.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // What became complete with this token; bytes that can never become a character turn into U+FFFD.
  absl::StatusOr<std::string> Push(std::int32_t id);
  // What is left, with U+FFFD for an incomplete character.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

}  // namespace kvferry::model
