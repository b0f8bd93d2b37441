#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// The little that tokenization needs to know about UTF-8 and Unicode.
namespace kvferry::model {

// What stands at the front of some bytes.
struct Utf8Prefix {
  enum class Kind {
    kCharacter,   // `bytes` long, whole and valid
    kInvalid,     // `bytes` (at least 1) can never become a character: a maximal subpart as in
                  // Unicode 15, section 3.9, which one U+FFFD replaces
    kIncomplete,  // all bytes are the beginning of a character
  };
  Kind kind;
  std::size_t bytes;
};
// `bytes` is not empty.
Utf8Prefix FirstUtf8(std::string_view bytes);

// kInvalidArgument names `what` and the offset of the first byte that is not UTF-8.
absl::Status CheckUtf8(std::string_view text, const std::string& what);

// Normalization form C of valid UTF-8.
absl::StatusOr<std::string> ToNfc(std::string_view text);

// Text of a file or a field for an error message: in quotes, one line of ASCII, cut where it is
// long.
std::string Quoted(std::string_view text);

// U+FFFD in UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace kvferry::model
