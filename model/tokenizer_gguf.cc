// The tokenizer that a GGUF file carries: keys tokenizer.ggml.* and tokenizer.chat_template.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/gguf.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

constexpr char kModel[] = "tokenizer.ggml.model";
constexpr char kPre[] = "tokenizer.ggml.pre";
constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTypes[] = "tokenizer.ggml.token_type";
constexpr char kMerges[] = "tokenizer.ggml.merges";
constexpr char kAddBos[] = "tokenizer.ggml.add_bos_token";
constexpr char kAddPrefix[] = "tokenizer.ggml.add_space_prefix";
constexpr char kBos[] = "tokenizer.ggml.bos_token_id";
constexpr const char* kEndKeys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                    "tokenizer.ggml.eom_token_id"};
constexpr char kChatTemplate[] = "tokenizer.chat_template";

// llama.cpp's llama_token_type.
enum TokenType : std::int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

absl::StatusOr<bool> BoolOr(const GgufFile& file, const char* key, bool otherwise) {
  return file.Has(key) ? file.Bool(key) : otherwise;
}

absl::StatusOr<std::int32_t> TokenId(const GgufFile& file, const char* key,
                                     std::size_t vocabulary) {
  KVF_ASSIGN_OR_RETURN(const std::int64_t id, file.Int(key));
  if (id >= 0 && static_cast<std::uint64_t>(id) < vocabulary) return static_cast<std::int32_t>(id);
  return absl::InvalidArgumentError(
      absl::StrCat(key, " is ", id, ", outside of the vocabulary of ", vocabulary));
}

absl::Status ReadVocabulary(const GgufFile& file, TokenizerSpec& spec) {
  KVF_ASSIGN_OR_RETURN(const auto tokens, file.Strings(kTokens));
  spec.tokens.assign(tokens.begin(), tokens.end());
  KVF_ASSIGN_OR_RETURN(const auto merges, file.Strings(kMerges));
  spec.merges.assign(merges.begin(), merges.end());
  if (!file.Has(kTypes)) return absl::OkStatus();
  KVF_ASSIGN_OR_RETURN(const auto types, file.Ints(kTypes));
  if (types.size() != tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kTypes, " has ", types.size(), " entries, ", kTokens, " has ", tokens.size()));
  }
  for (std::size_t id = 0; id < types.size(); ++id) {
    switch (types[id]) {
      case kNormal:
      case kUnused:  // fills a gap of the numbering: no merge makes it
        break;
      case kUnknown:
      case kControl:
      case kUserDefined:
        spec.added.push_back({static_cast<std::int32_t>(id), spec.tokens[id],
                              /*special=*/types[id] != kUserDefined});
        break;
      default:  // kByte belongs to SentencePiece vocabularies
        return absl::InvalidArgumentError(
            absl::StrCat(kTypes, "[", id, "] is ", types[id], ", which a byte-level BPE has not"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> TokenizerSpecFromGguf(const GgufFile& file) {
  KVF_ASSIGN_OR_RETURN(const std::string_view model, file.String(kModel));
  if (model != "gpt2") {
    return absl::UnimplementedError(absl::StrCat(kModel, " is ", Quoted(model),
                                                 "; only byte-level BPE (\"gpt2\") is supported"));
  }
  TokenizerSpec spec;
  KVF_ASSIGN_OR_RETURN(const std::string_view pre, file.String(kPre));
  KVF_ASSIGN_OR_RETURN(spec.expressions, PreTokenizerExpressions(pre));
  KVF_ASSIGN_OR_RETURN(const bool add_prefix, BoolOr(file, kAddPrefix, false));
  if (add_prefix) {
    return absl::UnimplementedError(absl::StrCat(kAddPrefix, " is true: not supported"));
  }
  KVF_RETURN_IF_ERROR(ReadVocabulary(file, spec));

  // Files written before these two keys existed rely on what llama.cpp does for Llama 3.
  const bool llama3 = pre == "llama-bpe";
  spec.whole_pieces_first = llama3;
  KVF_ASSIGN_OR_RETURN(const bool add_bos, BoolOr(file, kAddBos, llama3));
  if (add_bos) {
    KVF_ASSIGN_OR_RETURN(spec.bos, TokenId(file, kBos, spec.tokens.size()));
  }
  for (const char* key : kEndKeys) {
    if (!file.Has(key)) continue;
    KVF_ASSIGN_OR_RETURN(const std::int32_t id, TokenId(file, key, spec.tokens.size()));
    spec.end_tokens.push_back(id);
  }
  if (file.Has(kChatTemplate)) {
    KVF_ASSIGN_OR_RETURN(spec.chat_template, file.String(kChatTemplate));
  }
  return spec;
}

}  // namespace kvferry::model
