#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace kvferry::bench {

// A token is a byte, the first one `first`.
class ByteTokenizer final : public model::Tokenizer {
 public:
  explicit ByteTokenizer(int first = 0) : first_(first) {}

  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text, bool) const override {
    std::vector<std::int32_t> ids;
    for (const char c : text) ids.push_back(c - first_);
    return ids;
  }
  absl::StatusOr<std::string> TokenBytes(std::int32_t id) const override {
    return std::string(1, static_cast<char>(first_ + id));
  }
  bool IsSpecial(std::int32_t) const override { return false; }
  int vocabulary() const override { return 128 - first_; }
  std::span<const std::int32_t> end_tokens() const override { return {}; }
  const std::string& chat_template() const override { return none_; }

 private:
  const int first_;
  const std::string none_;
};

}  // namespace kvferry::bench
