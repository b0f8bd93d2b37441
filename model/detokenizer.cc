#include <utility>

#include "common/status_macros.h"
#include "model/tokenizer.h"
#include "model/unicode.h"

namespace kvferry::model {

absl::StatusOr<std::string> Detokenizer::Push(std::int32_t id) {
  KVF_ASSIGN_OR_RETURN(const std::string bytes, tokenizer_.TokenBytes(id));
  pending_ += bytes;
  std::string text;
  std::size_t done = 0;
  while (done < pending_.size()) {
    const Utf8Prefix prefix = FirstUtf8(std::string_view(pending_).substr(done));
    if (prefix.kind == Utf8Prefix::Kind::kIncomplete) break;
    if (prefix.kind == Utf8Prefix::Kind::kInvalid) {
      text += kReplacementCharacter;
    } else {
      text.append(pending_, done, prefix.bytes);
    }
    done += prefix.bytes;
  }
  pending_.erase(0, done);
  return text;
}

std::string Detokenizer::Finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace kvferry::model
