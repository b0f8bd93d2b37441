#include <cstring>
#include <filesystem>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "model/config_reader.h"

namespace kvferry::model {
namespace {

// Keys of one architecture: Int("block_count") is "llama.block_count".
class ArchitectureKeys {
 public:
  ArchitectureKeys(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  std::string Key(std::string_view name) const {
    return absl::StrCat(architecture_, ".", ToAbsl(name));
  }
  bool Has(std::string_view name) const { return file_.Has(Key(name)); }

  absl::StatusOr<int> Int(std::string_view name) const {
    KVF_ASSIGN_OR_RETURN(const std::int64_t value, file_.Int(Key(name)));
    if (value < 0 || value > std::numeric_limits<int>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": metadata ", Key(name), " is ", value));
    }
    return static_cast<int>(value);
  }
  absl::StatusOr<int> IntOr(std::string_view name, int fallback) const {
    return Has(name) ? Int(name) : fallback;
  }
  absl::StatusOr<float> FloatOr(std::string_view name, float fallback) const {
    if (!Has(name)) return fallback;
    KVF_ASSIGN_OR_RETURN(const double value, file_.Float(Key(name)));
    return static_cast<float>(value);
  }
  absl::Status Unsupported(std::string_view name, std::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": metadata ", Key(name), " ", ToAbsl(problem)));
  }

 private:
  const GgufFile& file_;
  std::string architecture_;
};

absl::Status ReadSizes(const GgufFile& file, const ArchitectureKeys& keys, ModelConfig& config) {
  KVF_ASSIGN_OR_RETURN(config.layers, keys.Int("block_count"));
  KVF_ASSIGN_OR_RETURN(config.hidden, keys.Int("embedding_length"));
  KVF_ASSIGN_OR_RETURN(config.intermediate, keys.Int("feed_forward_length"));
  KVF_ASSIGN_OR_RETURN(config.q_heads, keys.Int("attention.head_count"));
  KVF_ASSIGN_OR_RETURN(config.kv_heads, keys.IntOr("attention.head_count_kv", config.q_heads));
  KVF_ASSIGN_OR_RETURN(config.max_context_tokens, keys.Int("context_length"));
  if (config.q_heads < 1) return keys.Unsupported("attention.head_count", "is 0");
  KVF_ASSIGN_OR_RETURN(config.head_dim,
                       keys.IntOr("attention.key_length", config.hidden / config.q_heads));
  KVF_ASSIGN_OR_RETURN(const int value_dim, keys.IntOr("attention.value_length", config.head_dim));
  if (value_dim != config.head_dim) {
    return keys.Unsupported("attention.value_length", "differs from attention.key_length");
  }
  const StoredTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor token_embd.weight is missing or no matrix"));
  }
  if (embedding->shape[0] > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor token_embd.weight has ", embedding->shape[0], " rows"));
  }
  config.vocabulary = static_cast<int>(embedding->shape[0]);
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufFile& file, const ArchitectureKeys& keys, ModelConfig& config) {
  KVF_ASSIGN_OR_RETURN(config.rope_base, keys.FloatOr("rope.freq_base", 10000));
  KVF_ASSIGN_OR_RETURN(const int rotated, keys.IntOr("rope.dimension_count", config.head_dim));
  if (rotated != config.head_dim) {
    return keys.Unsupported("rope.dimension_count", "is not head_dim: partial rotation");
  }
  if (keys.Has("rope.scaling.type")) {
    KVF_ASSIGN_OR_RETURN(const auto type, file.String(keys.Key("rope.scaling.type")));
    if (type != "none") {
      return keys.Unsupported("rope.scaling.type",
                              absl::StrCat("is \"", ToAbsl(type), "\", supported is none"));
    }
  }
  const StoredTensor* factors = file.FindTensor("rope_freqs.weight");
  if (factors == nullptr) return absl::OkStatus();
  if (factors->type != TensorType::kF32) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor rope_freqs.weight is not F32"));
  }
  config.rope_factors.resize(factors->data.size() / sizeof(float));
  std::memcpy(config.rope_factors.data(), factors->data.data(), factors->data.size());
  return absl::OkStatus();
}

absl::Status RefuseOthers(const ArchitectureKeys& keys, const ModelConfig& config) {
  KVF_ASSIGN_OR_RETURN(const int experts, keys.IntOr("expert_count", 0));
  if (experts > 0) return keys.Unsupported("expert_count", "is set: mixture of experts");
  KVF_ASSIGN_OR_RETURN(const int window, keys.IntOr("attention.sliding_window", 0));
  if (window > 0 && window < config.max_context_tokens) {
    return keys.Unsupported("attention.sliding_window",
                            absl::StrCat("is ", window, ", smaller than the context of ",
                                         config.max_context_tokens, ": sliding-window attention"));
  }
  return absl::OkStatus();
}

absl::Status ReadEndTokens(const GgufFile& file, ModelConfig& config) {
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (!file.Has(key)) continue;
    KVF_ASSIGN_OR_RETURN(const std::int64_t id, file.Int(key));
    if (id < 0 || id >= config.vocabulary) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": metadata ", key, " is ", id,
                                                     ", the vocabulary has ", config.vocabulary));
    }
    const int token = static_cast<int>(id);
    if (config.end_tokens.empty() || config.end_tokens.back() != token) {
      config.end_tokens.push_back(token);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file) {
  KVF_ASSIGN_OR_RETURN(const auto architecture, file.String("general.architecture"));
  if (architecture != "llama" && architecture != "qwen2" && architecture != "qwen3") {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": metadata general.architecture is \"", ToAbsl(architecture),
                     "\", supported are llama (which Mistral and SmolLM2 use too), qwen2, qwen3"));
  }
  ModelConfig config;
  config.architecture = std::string(architecture);
  const ArchitectureKeys keys(file, config.architecture);
  KVF_RETURN_IF_ERROR(ReadSizes(file, keys, config));
  KVF_ASSIGN_OR_RETURN(config.rms_epsilon, keys.FloatOr("attention.layer_norm_rms_epsilon", 1e-5f));
  KVF_RETURN_IF_ERROR(ReadRope(file, keys, config));
  KVF_RETURN_IF_ERROR(RefuseOthers(keys, config));
  KVF_RETURN_IF_ERROR(ReadEndTokens(file, config));
  config.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  config.attention_bias = config.architecture == "qwen2";
  config.qk_norm = config.architecture == "qwen3";
  KVF_RETURN_IF_ERROR(config.Validate(file.path()));
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return ReadHuggingFaceConfig(path);
  KVF_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  return ReadGgufConfig(file);
}

}  // namespace kvferry::model
