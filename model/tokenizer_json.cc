// The tokenizer of a Hugging Face directory: tokenizer.json as the `tokenizers` package writes it,
// with what its neighbours say about begin, end and chat.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_spec.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

using Json = nlohmann::json;

// Four times the largest vocabulary in use, so that one wrong id does not take the memory.
constexpr std::size_t kMaxTokens = 1u << 20;

// The member `key`, or null where `object` is no object or has none.
const Json& Member(const Json& object, const char* key) {
  static const Json& null = *new Json;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string StringOr(const Json& value, std::string_view otherwise) {
  return value.is_string() ? value.get_ref<const std::string&>() : std::string(otherwise);
}

bool BoolOr(const Json& value, bool otherwise) {
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

absl::Status Missing(const std::string& field, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is missing or not ", wanted));
}

absl::Status Unsupported(const std::string& field, std::string_view value) {
  return absl::UnimplementedError(
      absl::StrCat(field, " ", Quoted(value), " is not supported (byte-level BPE is)"));
}

absl::StatusOr<std::int32_t> TokenId(const Json& value, const std::string& field) {
  if (!value.is_number_integer()) return Missing(field, "an integer");
  if (value.is_number_unsigned() ? value.get<std::uint64_t>() >= kMaxTokens
                                 : value.get<std::int64_t>() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", value.dump(), "; ids are 0 to ", kMaxTokens - 1));
  }
  return value.get<std::int32_t>();
}

absl::Status SetToken(std::int32_t id, std::string text, std::vector<std::string>& tokens) {
  const auto at = static_cast<std::size_t>(id);
  if (at >= tokens.size()) tokens.resize(at + 1);
  if (!tokens[at].empty() && tokens[at] != text) {
    return absl::InvalidArgumentError(absl::StrCat("model.vocab: id ", id, " is both ",
                                                   Quoted(tokens[at]), " and ", Quoted(text)));
  }
  tokens[at] = std::move(text);
  return absl::OkStatus();
}

absl::StatusOr<std::string> MergeText(const Json& merge, std::size_t rank) {
  if (merge.is_string()) return merge.get<std::string>();
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return absl::StrCat(merge[0].get_ref<const std::string&>(), " ",
                        merge[1].get_ref<const std::string&>());
  }
  return Missing(absl::StrCat("model.merges[", rank, "]"), "\"left right\" or [left, right]");
}

// Options of a BPE that make it another algorithm than ours.
absl::Status CheckBpeOptions(const Json& model) {
  const Json& dropout = Member(model, "dropout");
  if (dropout.is_number() && dropout.get<double>() != 0) {
    return Unsupported("model.dropout", dropout.dump());
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::string value = StringOr(Member(model, key), "");
    if (!value.empty()) return Unsupported(absl::StrCat("model.", key), value);
  }
  for (const char* key : {"byte_fallback", "fuse_unk"}) {
    if (BoolOr(Member(model, key), false)) return Unsupported(absl::StrCat("model.", key), "true");
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const Json& model, TokenizerSpec& spec) {
  if (!model.is_object()) return Missing("model", "an object");
  const std::string type = StringOr(Member(model, "type"), "BPE");
  if (type != "BPE") return Unsupported("model.type", type);
  KVF_RETURN_IF_ERROR(CheckBpeOptions(model));
  const Json& vocabulary = Member(model, "vocab");
  if (!vocabulary.is_object()) return Missing("model.vocab", "an object");
  for (const auto& [text, id_value] : vocabulary.items()) {
    KVF_ASSIGN_OR_RETURN(const std::int32_t id,
                         TokenId(id_value, absl::StrCat("model.vocab[", Quoted(text), "]")));
    KVF_RETURN_IF_ERROR(SetToken(id, text, spec.tokens));
  }
  const Json& merges = Member(model, "merges");
  if (!merges.is_array()) return Missing("model.merges", "an array");
  spec.merges.reserve(merges.size());
  for (const Json& merge : merges) {
    KVF_ASSIGN_OR_RETURN(std::string text, MergeText(merge, spec.merges.size()));
    spec.merges.push_back(std::move(text));
  }
  spec.whole_pieces_first = BoolOr(Member(model, "ignore_merges"), false);
  const Json& unknown = Member(model, "unk_token");
  if (unknown.is_string()) {
    KVF_ASSIGN_OR_RETURN(spec.unknown,
                         TokenId(Member(vocabulary, unknown.get_ref<const std::string&>().c_str()),
                                 "model.vocab[model.unk_token]"));
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& added, TokenizerSpec& spec) {
  if (added.is_null()) return absl::OkStatus();
  if (!added.is_array()) return Missing("added_tokens", "an array");
  for (const Json& token : added) {
    const std::string field = absl::StrCat("added_tokens[", spec.added.size(), "]");
    KVF_ASSIGN_OR_RETURN(const std::int32_t id,
                         TokenId(Member(token, "id"), absl::StrCat(field, ".id")));
    const std::string text = StringOr(Member(token, "content"), "");
    if (text.empty()) return Missing(absl::StrCat(field, ".content"), "a text");
    for (const char* key : {"lstrip", "rstrip", "single_word"}) {
      if (BoolOr(Member(token, key), false)) {
        return Unsupported(absl::StrCat(field, ".", key, " of"), text);
      }
    }
    if (spec.nfc && BoolOr(Member(token, "normalized"), false)) {
      return Unsupported(absl::StrCat(field, ".normalized with normalizer NFC of"), text);
    }
    KVF_RETURN_IF_ERROR(SetToken(id, text, spec.tokens));
    spec.added.push_back({id, text, BoolOr(Member(token, "special"), false)});
  }
  return absl::OkStatus();
}

absl::Status ReadNormalizer(const Json& normalizer, TokenizerSpec& spec) {
  if (normalizer.is_null()) return absl::OkStatus();
  const std::string type = StringOr(Member(normalizer, "type"), "");
  if (type == "NFC") {
    spec.nfc = true;
    return absl::OkStatus();
  }
  if (type == "Sequence") {
    const Json& parts = Member(normalizer, "normalizers");
    if (!parts.is_array()) return Missing("normalizer.normalizers", "an array");
    for (const Json& part : parts) {
      if (StringOr(Member(part, "type"), "") != "NFC") {
        return Unsupported("normalizer type", StringOr(Member(part, "type"), ""));
      }
      spec.nfc = true;
    }
    return absl::OkStatus();
  }
  return Unsupported("normalizer type", type);
}

// An expression that matches exactly `text`.
std::string Literal(std::string_view text) {
  std::string expression;
  for (const char c : text) {
    if (absl::ascii_isascii(static_cast<unsigned char>(c)) &&
        absl::ascii_ispunct(static_cast<unsigned char>(c))) {
      expression.push_back('\\');
    }
    expression.push_back(c);
  }
  return expression;
}

absl::Status ReadSplit(const Json& step, TokenizerSpec& spec) {
  const std::string behavior = StringOr(Member(step, "behavior"), "");
  if (behavior != "Isolated") return Unsupported("pre_tokenizer Split behavior", behavior);
  const Json& pattern = Member(step, "pattern");
  if (Member(pattern, "Regex").is_string()) {
    // Isolated matches are cut out the same way whether the matches or the gaps are wanted.
    spec.expressions.push_back(Member(pattern, "Regex").get<std::string>());
  } else if (Member(pattern, "String").is_string()) {
    spec.expressions.push_back(Literal(Member(pattern, "String").get_ref<const std::string&>()));
  } else {
    return Missing("pre_tokenizer Split pattern", "{\"Regex\": text} or {\"String\": text}");
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizerStep(const Json& step, bool& byte_level, TokenizerSpec& spec) {
  const std::string type = StringOr(Member(step, "type"), "");
  if (byte_level) return Unsupported("pre_tokenizer after ByteLevel", type);
  if (type == "Split") return ReadSplit(step, spec);
  if (type == "Digits") {
    const bool individual = BoolOr(Member(step, "individual_digits"), false);
    spec.expressions.push_back(individual ? R"(\p{N})" : R"(\p{N}+)");
    return absl::OkStatus();
  }
  if (type != "ByteLevel") return Unsupported("pre_tokenizer type", type);
  if (BoolOr(Member(step, "add_prefix_space"), true)) {
    return Unsupported("pre_tokenizer ByteLevel add_prefix_space", "true");
  }
  if (BoolOr(Member(step, "use_regex"), true)) spec.expressions.push_back(kGpt2Expression);
  byte_level = true;
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const Json& pre_tokenizer, TokenizerSpec& spec) {
  bool byte_level = false;
  if (StringOr(Member(pre_tokenizer, "type"), "") == "Sequence") {
    const Json& steps = Member(pre_tokenizer, "pretokenizers");
    if (!steps.is_array()) return Missing("pre_tokenizer.pretokenizers", "an array");
    for (const Json& step : steps) {
      KVF_RETURN_IF_ERROR(ReadPreTokenizerStep(step, byte_level, spec));
    }
  } else {
    KVF_RETURN_IF_ERROR(ReadPreTokenizerStep(pre_tokenizer, byte_level, spec));
  }
  return byte_level ? absl::OkStatus() : Unsupported("pre_tokenizer without", "ByteLevel");
}

// Finds the one token that a TemplateProcessing puts in front of a single text.
absl::Status ReadTemplate(const Json& processor, TokenizerSpec& spec) {
  const Json& single = Member(processor, "single");
  if (!single.is_array()) return Missing("post_processor.single", "an array");
  bool text_seen = false;
  for (const Json& part : single) {
    if (!Member(part, "Sequence").is_null()) {
      text_seen = true;
      continue;
    }
    const std::string name = StringOr(Member(Member(part, "SpecialToken"), "id"), "");
    if (text_seen || spec.bos) return Unsupported("post_processor with a second token", name);
    const Json& ids = Member(Member(Member(processor, "special_tokens"), name.c_str()), "ids");
    if (!ids.is_array() || ids.size() != 1) {
      return Missing(absl::StrCat("post_processor.special_tokens[", Quoted(name), "].ids"),
                     "an array of one id");
    }
    KVF_ASSIGN_OR_RETURN(spec.bos, TokenId(ids[0], "post_processor.special_tokens ids"));
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const Json& processor, TokenizerSpec& spec) {
  if (processor.is_null()) return absl::OkStatus();
  const std::string type = StringOr(Member(processor, "type"), "");
  if (type == "ByteLevel") return absl::OkStatus();  // trims offsets, which we do not have
  if (type == "TemplateProcessing") return ReadTemplate(processor, spec);
  if (type != "Sequence") return Unsupported("post_processor type", type);
  const Json& parts = Member(processor, "processors");
  if (!parts.is_array()) return Missing("post_processor.processors", "an array");
  for (const Json& part : parts) {
    const std::string part_type = StringOr(Member(part, "type"), "");
    if (part_type == "TemplateProcessing") {
      KVF_RETURN_IF_ERROR(ReadTemplate(part, spec));
    } else if (part_type != "ByteLevel") {
      return Unsupported("post_processor type", part_type);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path.string()));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return absl::DataLossError(absl::StrCat("cannot read ", path.string()));
  return std::move(text).str();
}

// Null where there is no such file.
absl::StatusOr<Json> ReadOptionalJson(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return Json();
  KVF_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not a JSON object"));
  }
  return json;
}

// One id or several; BuildTokenizer holds them to the vocabulary.
absl::Status AddEndTokens(const Json& value, const std::string& field, TokenizerSpec& spec) {
  if (value.is_null()) return absl::OkStatus();
  const Json ids = value.is_array() ? value : Json::array({value});
  for (const Json& item : ids) {
    KVF_ASSIGN_OR_RETURN(const std::int32_t id, TokenId(item, field));
    spec.end_tokens.push_back(id);
  }
  return absl::OkStatus();
}

// A token named in tokenizer_config.json: a text, or an object with "content".
void AddNamedEndToken(const Json& value, TokenizerSpec& spec) {
  const std::string name = StringOr(value.is_object() ? Member(value, "content") : value, "");
  for (const AddedToken& token : spec.added) {
    if (token.text == name) spec.end_tokens.push_back(token.id);
  }
}

// One template, or several with names.
std::string ChatTemplate(const Json& value) {
  if (!value.is_array()) return StringOr(value, "");
  for (const Json& named : value) {
    if (StringOr(Member(named, "name"), "") == "default") {
      return StringOr(Member(named, "template"), "");
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<TokenizerSpec> TokenizerSpecFromJson(std::string_view tokenizer_json) {
  const Json json = Json::parse(tokenizer_json, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("not a JSON object, or it ends too early");
  }
  TokenizerSpec spec;
  KVF_RETURN_IF_ERROR(ReadNormalizer(Member(json, "normalizer"), spec));
  KVF_RETURN_IF_ERROR(ReadPreTokenizer(Member(json, "pre_tokenizer"), spec));
  KVF_RETURN_IF_ERROR(ReadModel(Member(json, "model"), spec));
  KVF_RETURN_IF_ERROR(ReadAddedTokens(Member(json, "added_tokens"), spec));
  KVF_RETURN_IF_ERROR(ReadPostProcessor(Member(json, "post_processor"), spec));
  return spec;
}

absl::StatusOr<TokenizerSpec> TokenizerSpecFromDirectory(const std::string& directory) {
  const std::filesystem::path folder(directory);
  if (!std::filesystem::exists(folder / "tokenizer.json") &&
      std::filesystem::exists(folder / "tokenizer.model")) {
    return absl::UnimplementedError(absl::StrCat(
        directory, " has a SentencePiece tokenizer.model; only byte-level BPE is supported"));
  }
  KVF_ASSIGN_OR_RETURN(const std::string text, ReadFile(folder / "tokenizer.json"));
  absl::StatusOr<TokenizerSpec> read = TokenizerSpecFromJson(text);
  if (!read.ok()) {
    return absl::Status(read.status().code(),
                        absl::StrCat("tokenizer.json: ", read.status().message()));
  }
  TokenizerSpec spec = *std::move(read);
  KVF_ASSIGN_OR_RETURN(const Json config, ReadOptionalJson(folder / "tokenizer_config.json"));
  KVF_ASSIGN_OR_RETURN(const Json model, ReadOptionalJson(folder / "config.json"));
  KVF_ASSIGN_OR_RETURN(const Json generation, ReadOptionalJson(folder / "generation_config.json"));
  KVF_RETURN_IF_ERROR(
      AddEndTokens(Member(model, "eos_token_id"), "config.json: eos_token_id", spec));
  KVF_RETURN_IF_ERROR(AddEndTokens(Member(generation, "eos_token_id"),
                                   "generation_config.json: eos_token_id", spec));
  AddNamedEndToken(Member(config, "eos_token"), spec);
  spec.chat_template = ChatTemplate(Member(config, "chat_template"));
  if (std::filesystem::exists(folder / "chat_template.jinja")) {
    KVF_ASSIGN_OR_RETURN(spec.chat_template, ReadFile(folder / "chat_template.jinja"));
  }
  return spec;
}

}  // namespace kvferry::model
