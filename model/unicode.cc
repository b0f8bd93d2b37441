#include "model/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kvferry::model {
namespace {

// Bytes of the character that `lead` begins, and the range of its second byte (Unicode 15, table
// 3-7). length 0: no character begins so.
struct Lead {
  int length;
  unsigned char second_min, second_max;
};

Lead ClassifyLead(unsigned char lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

}  // namespace

Utf8Prefix FirstUtf8(std::string_view bytes) {
  const Lead lead = ClassifyLead(static_cast<unsigned char>(bytes[0]));
  if (lead.length == 0) return {Utf8Prefix::Kind::kInvalid, 1};
  for (std::size_t i = 1; i < static_cast<std::size_t>(lead.length); ++i) {
    if (i == bytes.size()) return {Utf8Prefix::Kind::kIncomplete, i};
    const auto byte = static_cast<unsigned char>(bytes[i]);
    const unsigned char low = i == 1 ? lead.second_min : 0x80;
    const unsigned char high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high) return {Utf8Prefix::Kind::kInvalid, i};
  }
  return {Utf8Prefix::Kind::kCharacter, static_cast<std::size_t>(lead.length)};
}

absl::Status CheckUtf8(std::string_view text, const std::string& what) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Prefix prefix = FirstUtf8(text.substr(at));
    if (prefix.kind != Utf8Prefix::Kind::kCharacter) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " is not valid UTF-8 at byte offset ", at));
    }
    at += prefix.bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ToNfc(std::string_view text) {
  if (IsAscii(text)) return std::string(text);
  utf8proc_uint8_t* normalized = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &normalized,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) {
    return absl::InvalidArgumentError(absl::StrCat("NFC normalization of ", text.size(),
                                                   " bytes failed: ", utf8proc_errmsg(size)));
  }
  std::string result(reinterpret_cast<const char*>(normalized), static_cast<std::size_t>(size));
  std::free(normalized);
  return result;
}

std::string Quoted(std::string_view text) {
  constexpr std::size_t kMaxBytes = 80;
  const std::string escaped = absl::CHexEscape(std::string(text.substr(0, kMaxBytes)));
  return absl::StrCat("\"", escaped, text.size() > kMaxBytes ? "...\"" : "\"");
}

}  // namespace kvferry::model
