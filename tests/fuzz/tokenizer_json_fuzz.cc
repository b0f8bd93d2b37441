#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/chat_template.h"
#include "model/tokenizer_spec.h"
#include "model/unicode.h"

// Any bytes may be in a tokenizer.json. What is accepted must encode any text to ids that exist and
// decode them to UTF-8.
namespace {

using kvferry::model::Detokenizer;
using kvferry::model::Tokenizer;

void Require(bool condition) {
  if (!condition) std::abort();
}

void EncodeAndDecode(const Tokenizer& tokenizer, std::string_view text, bool parse_special) {
  const auto ids = tokenizer.Encode(text, parse_special);
  if (!ids.ok()) return;  // an expression may refuse to match in bounded time
  Detokenizer detokenizer(tokenizer);
  for (const std::int32_t id : *ids) {
    Require(id >= 0 && id < tokenizer.vocabulary());
    const auto piece = detokenizer.Push(id);
    Require(piece.ok() && kvferry::model::CheckUtf8(*piece, "piece").ok());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)kvferry::model::DetectChatFormat(text).ok();
  kvferry::model::DefaultSystemPrompt(text);
  auto spec = kvferry::model::TokenizerSpecFromJson(text);
  if (!spec.ok()) return 0;
  const auto tokenizer = kvferry::model::BuildTokenizer(*std::move(spec));
  if (!tokenizer.ok()) return 0;
  for (const bool parse_special : {false, true}) {
    EncodeAndDecode(**tokenizer, "It's a\n\n  b12 <s>\u00e9 e\u0301 \U0001F600<t>  ",
                    parse_special);
    EncodeAndDecode(**tokenizer, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", parse_special);
    EncodeAndDecode(**tokenizer, text.substr(0, 256), parse_special);
  }
  return 0;
}
