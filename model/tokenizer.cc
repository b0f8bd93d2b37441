#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/bpe.h"
#include "model/gguf.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

constexpr std::size_t kMaxVocabulary = 16u << 20;

// Finds added tokens in text: a trie over their bytes, the longest at the first position wins.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(const std::vector<const AddedToken*>& tokens) {
    for (const AddedToken* token : tokens) Insert(*token);
  }

  struct Match {
    std::size_t begin, end;
    std::int32_t id;
  };
  // The first match that begins at or after `from`; begin == npos: none.
  Match Find(std::string_view text, std::size_t from) const {
    for (std::size_t begin = from; begin < text.size(); ++begin) {
      const Match match = LongestAt(text, begin);
      if (match.end > begin) return match;
    }
    return {std::string_view::npos, std::string_view::npos, 0};
  }

 private:
  static std::uint64_t Key(std::uint32_t node, char byte) {
    return std::uint64_t{node} << 8 | static_cast<unsigned char>(byte);
  }

  void Insert(const AddedToken& token) {
    std::uint32_t node = 0;
    for (const char byte : token.text) {
      const auto [edge, is_new] =
          edges_.try_emplace(Key(node, byte), static_cast<std::uint32_t>(ids_.size()));
      if (is_new) ids_.push_back(kNoToken);
      node = edge->second;
    }
    ids_[node] = token.id;
    starts_[static_cast<unsigned char>(token.text[0])] = true;
  }

  Match LongestAt(std::string_view text, std::size_t begin) const {
    Match match{begin, begin, 0};
    if (!starts_[static_cast<unsigned char>(text[begin])]) return match;
    std::uint32_t node = 0;
    for (std::size_t at = begin; at < text.size(); ++at) {
      const auto edge = edges_.find(Key(node, text[at]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (ids_[node] != kNoToken) match = {begin, at + 1, ids_[node]};
    }
    return match;
  }

  static constexpr std::int32_t kNoToken = -1;
  absl::flat_hash_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> ids_{kNoToken};  // by node
  std::array<bool, 256> starts_{};
};

class ByteLevelTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text,
                                                   bool parse_special) const override;
  absl::StatusOr<std::string> TokenBytes(std::int32_t id) const override;
  bool IsSpecial(std::int32_t id) const override { return special_.contains(id); }
  int vocabulary() const override { return static_cast<int>(bytes_.size()); }
  std::span<const std::int32_t> end_tokens() const override { return end_tokens_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  ByteLevelTokenizer(const TokenizerSpec& spec, PreTokenizer pre_tokenizer, BytePairEncoder encoder,
                     const std::vector<const AddedToken*>& all,
                     const std::vector<const AddedToken*>& plain);

  absl::Status EncodePlain(std::string_view text, BytePairEncoder::Scratch& scratch,
                           std::vector<std::int32_t>& ids) const;

  const PreTokenizer pre_tokenizer_;
  const BytePairEncoder encoder_;
  const AddedTokenFinder all_added_;
  const AddedTokenFinder plain_added_;  // without the special ones
  std::vector<std::string> bytes_;      // by id
  absl::flat_hash_set<std::int32_t> special_;
  const bool nfc_;
  const std::optional<std::int32_t> bos_;
  const std::vector<std::int32_t> end_tokens_;
  const std::string chat_template_;
};

absl::Status CheckId(std::int64_t id, std::size_t vocabulary, const std::string& what) {
  if (id >= 0 && static_cast<std::uint64_t>(id) < vocabulary) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is token ", id, ", outside of the vocabulary of ", vocabulary));
}

absl::Status CheckSpec(const TokenizerSpec& spec) {
  const std::size_t size = spec.tokens.size();
  if (size == 0 || size > kMaxVocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocabulary has ", size, " tokens; 1 to ", kMaxVocabulary, " are allowed"));
  }
  for (const AddedToken& token : spec.added) {
    KVF_RETURN_IF_ERROR(CheckId(token.id, size, absl::StrCat("added token ", Quoted(token.text))));
    if (token.text.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " is empty"));
    }
  }
  if (spec.bos) KVF_RETURN_IF_ERROR(CheckId(*spec.bos, size, "the begin-of-text token"));
  for (const std::int32_t id : spec.end_tokens) {
    KVF_RETURN_IF_ERROR(CheckId(id, size, "an end token"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ByteLevelTokenizer::Create(TokenizerSpec spec) {
  KVF_RETURN_IF_ERROR(CheckSpec(spec));
  KVF_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::Create(spec.expressions));
  KVF_ASSIGN_OR_RETURN(
      BytePairEncoder encoder,
      BytePairEncoder::Create(spec.tokens, spec.merges, spec.unknown, spec.whole_pieces_first));
  std::vector<const AddedToken*> all, plain;
  for (const AddedToken& token : spec.added) {
    all.push_back(&token);
    if (!token.special) plain.push_back(&token);
    if (token.special && EndsAnswer(token.text)) spec.end_tokens.push_back(token.id);
  }
  std::sort(spec.end_tokens.begin(), spec.end_tokens.end());
  spec.end_tokens.erase(std::unique(spec.end_tokens.begin(), spec.end_tokens.end()),
                        spec.end_tokens.end());
  return std::unique_ptr<Tokenizer>(
      new ByteLevelTokenizer(spec, std::move(pre_tokenizer), std::move(encoder), all, plain));
}

ByteLevelTokenizer::ByteLevelTokenizer(const TokenizerSpec& spec, PreTokenizer pre_tokenizer,
                                       BytePairEncoder encoder,
                                       const std::vector<const AddedToken*>& all,
                                       const std::vector<const AddedToken*>& plain)
    : pre_tokenizer_(std::move(pre_tokenizer)),
      encoder_(std::move(encoder)),
      all_added_(all),
      plain_added_(plain),
      nfc_(spec.nfc),
      bos_(spec.bos),
      end_tokens_(spec.end_tokens),
      chat_template_(spec.chat_template) {
  bytes_.reserve(spec.tokens.size());
  for (const std::string& token : spec.tokens) {
    bytes_.push_back(DecodeByteAlphabet(token).value_or(token));
  }
  for (const AddedToken& token : spec.added) {
    if (token.special) special_.insert(token.id);
    bytes_[static_cast<std::size_t>(token.id)] = token.special ? "" : token.text;
  }
}

absl::StatusOr<std::vector<std::int32_t>> ByteLevelTokenizer::Encode(std::string_view text,
                                                                     bool parse_special) const {
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("text has ", text.size(), " bytes; less than 2 GiB can be tokenized"));
  }
  KVF_RETURN_IF_ERROR(CheckUtf8(text, "text"));
  const AddedTokenFinder& finder = parse_special ? all_added_ : plain_added_;
  std::vector<std::int32_t> ids;
  BytePairEncoder::Scratch scratch;
  for (std::size_t at = 0; at < text.size();) {
    const AddedTokenFinder::Match match = finder.Find(text, at);
    const std::size_t end = std::min(match.begin, text.size());
    KVF_RETURN_IF_ERROR(EncodePlain(text.substr(at, end - at), scratch, ids));
    if (match.begin == std::string_view::npos) break;
    ids.push_back(match.id);
    at = match.end;
  }
  // A chat template may have written it already.
  if (bos_ && (ids.empty() || ids.front() != *bos_)) ids.insert(ids.begin(), *bos_);
  return ids;
}

absl::Status ByteLevelTokenizer::EncodePlain(std::string_view text,
                                             BytePairEncoder::Scratch& scratch,
                                             std::vector<std::int32_t>& ids) const {
  const auto encode = [&](std::string_view piece) { encoder_.Encode(piece, scratch, ids); };
  if (!nfc_) return pre_tokenizer_.Split(text, encode);
  KVF_ASSIGN_OR_RETURN(const std::string normalized, ToNfc(text));
  return pre_tokenizer_.Split(normalized, encode);
}

absl::StatusOr<std::string> ByteLevelTokenizer::TokenBytes(std::int32_t id) const {
  KVF_RETURN_IF_ERROR(CheckId(id, bytes_.size(), "the token to decode"));
  return bytes_[static_cast<std::size_t>(id)];
}

}  // namespace

bool EndsAnswer(std::string_view special_token) {
  static constexpr std::string_view kNames[] = {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>",
                                                "<|eot_id|>", "<|eom_id|>"};
  return std::find(std::begin(kNames), std::end(kNames), special_token) != std::end(kNames);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec) {
  return ByteLevelTokenizer::Create(std::move(spec));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  const auto load = [&]() -> absl::StatusOr<std::unique_ptr<Tokenizer>> {
    if (!path.ends_with(".gguf")) {
      KVF_ASSIGN_OR_RETURN(TokenizerSpec spec, TokenizerSpecFromDirectory(path));
      return BuildTokenizer(std::move(spec));
    }
    KVF_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
    KVF_ASSIGN_OR_RETURN(TokenizerSpec spec, TokenizerSpecFromGguf(file));
    return BuildTokenizer(std::move(spec));
  };
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = load();
  if (tokenizer.ok() || absl::StrContains(tokenizer.status().message(), path)) return tokenizer;
  return absl::Status(tokenizer.status().code(),
                      absl::StrCat("tokenizer of ", path, ": ", tokenizer.status().message()));
}

}  // namespace kvferry::model
