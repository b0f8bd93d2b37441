#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "model/config_reader.h"
#include "model/json_file.h"

namespace kvferry::model {
namespace {

using Json = nlohmann::json;

// The fields of one JSON object; null counts as absent.
class Fields {
 public:
  Fields(std::string path, const Json& object) : path_(std::move(path)), object_(object) {}

  const std::string& path() const { return path_; }
  const Json* Find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  absl::Status Invalid(std::string_view name, std::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", ToAbsl(name), " ", ToAbsl(problem)));
  }

  absl::StatusOr<int> Int(const char* name) const {
    const Json* value = Find(name);
    if (value == nullptr) return Invalid(name, "is missing");
    if (!value->is_number_integer()) return Invalid(name, "is no integer");
    if (value->is_number_unsigned() &&
        value->get<std::uint64_t>() > std::numeric_limits<int>::max()) {
      return Invalid(name, "is too large");
    }
    const auto number = value->get<std::int64_t>();
    if (number < 0) return Invalid(name, absl::StrCat("is ", number));
    return static_cast<int>(number);
  }
  absl::StatusOr<int> IntOr(const char* name, int fallback) const {
    return Find(name) != nullptr ? Int(name) : fallback;
  }
  absl::StatusOr<float> FloatOr(const char* name, float fallback) const {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_number()) return Invalid(name, "is no number");
    return value->get<float>();
  }
  absl::StatusOr<bool> BoolOr(const char* name, bool fallback) const {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) return Invalid(name, "is neither true nor false");
    return value->get<bool>();
  }
  absl::StatusOr<std::string> StringOr(const char* name, std::string_view fallback) const {
    const Json* value = Find(name);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) return Invalid(name, "is no string");
    return value->get<std::string>();
  }

 private:
  std::string path_;
  const Json& object_;
};

absl::Status ReadSizes(const Fields& fields, ModelConfig& config) {
  KVF_ASSIGN_OR_RETURN(config.layers, fields.Int("num_hidden_layers"));
  KVF_ASSIGN_OR_RETURN(config.hidden, fields.Int("hidden_size"));
  KVF_ASSIGN_OR_RETURN(config.intermediate, fields.Int("intermediate_size"));
  KVF_ASSIGN_OR_RETURN(config.q_heads, fields.Int("num_attention_heads"));
  KVF_ASSIGN_OR_RETURN(config.kv_heads, fields.IntOr("num_key_value_heads", config.q_heads));
  KVF_ASSIGN_OR_RETURN(config.vocabulary, fields.Int("vocab_size"));
  KVF_ASSIGN_OR_RETURN(config.max_context_tokens, fields.Int("max_position_embeddings"));
  if (config.q_heads < 1) return fields.Invalid("num_attention_heads", "is 0");
  const int split = config.hidden / config.q_heads;
  KVF_ASSIGN_OR_RETURN(config.head_dim, fields.IntOr("head_dim", split));
  KVF_ASSIGN_OR_RETURN(config.rms_epsilon, fields.FloatOr("rms_norm_eps", 1e-6f));
  return absl::OkStatus();
}

// Either the `rope_scaling` of older files or the `rope_parameters` of newer ones.
absl::Status ReadRopeObject(const Fields& fields, const char* name, ModelConfig& config) {
  const Json* object = fields.Find(name);
  if (object == nullptr) return absl::OkStatus();
  if (!object->is_object()) return fields.Invalid(name, "is no object");
  const Fields rope(absl::StrCat(fields.path(), ": ", name), *object);
  KVF_ASSIGN_OR_RETURN(config.rope_base, rope.FloatOr("rope_theta", config.rope_base));
  KVF_ASSIGN_OR_RETURN(const auto old_type, rope.StringOr("type", "default"));
  KVF_ASSIGN_OR_RETURN(const auto type, rope.StringOr("rope_type", old_type));
  KVF_ASSIGN_OR_RETURN(const float rotated, rope.FloatOr("partial_rotary_factor", 1));
  if (rotated != 1) return rope.Invalid("partial_rotary_factor", "is not 1: partial rotation");
  if (type == "default") return absl::OkStatus();
  if (type != "llama3") {
    return rope.Invalid("rope_type",
                        absl::StrCat("is \"", type, "\", supported are default and llama3"));
  }
  Llama3RopeScaling scaling;
  KVF_ASSIGN_OR_RETURN(scaling.factor, rope.FloatOr("factor", scaling.factor));
  KVF_ASSIGN_OR_RETURN(scaling.low_freq_factor,
                       rope.FloatOr("low_freq_factor", scaling.low_freq_factor));
  KVF_ASSIGN_OR_RETURN(scaling.high_freq_factor,
                       rope.FloatOr("high_freq_factor", scaling.high_freq_factor));
  KVF_ASSIGN_OR_RETURN(scaling.original_max_context, rope.IntOr("original_max_position_embeddings",
                                                                scaling.original_max_context));
  config.rope_scaling = scaling;
  return absl::OkStatus();
}

absl::Status RefuseSlidingWindow(const Fields& fields, const ModelConfig& config) {
  if (const Json* types = fields.Find("layer_types"); types != nullptr) {
    for (const Json& type : *types) {
      if (type == "full_attention" || type == "sliding_attention") continue;
      return fields.Invalid("layer_types",
                            absl::StrCat("names ", type.dump(), ", supported is full_attention"));
    }
  }
  const bool qwen = config.architecture == "qwen2" || config.architecture == "qwen3";
  KVF_ASSIGN_OR_RETURN(const bool used, fields.BoolOr("use_sliding_window", !qwen));
  KVF_ASSIGN_OR_RETURN(const int window, fields.IntOr("sliding_window", 0));
  if (used && window > 0 && window < config.max_context_tokens) {
    return fields.Invalid("sliding_window",
                          absl::StrCat("is ", window, ", smaller than max_position_embeddings ",
                                       config.max_context_tokens, ": sliding-window attention"));
  }
  return absl::OkStatus();
}

absl::Status RefuseOthers(const Fields& fields, const ModelConfig& config) {
  KVF_ASSIGN_OR_RETURN(const auto activation, fields.StringOr("hidden_act", "silu"));
  if (activation != "silu") {
    return fields.Invalid("hidden_act", absl::StrCat("is \"", activation, "\", supported is silu"));
  }
  for (const char* name : {"attention_bias", "mlp_bias"}) {
    KVF_ASSIGN_OR_RETURN(const bool bias, fields.BoolOr(name, false));
    if (bias && config.architecture != "qwen2") {
      return fields.Invalid(name, absl::StrCat("is true, which ", config.architecture,
                                               " models are not known to have"));
    }
  }
  if (fields.Find("quantization_config") != nullptr) {
    return fields.Invalid("quantization_config",
                          "is there: supported are unquantized F32, F16 and BF16 safetensors, or "
                          "a GGUF file");
  }
  return RefuseSlidingWindow(fields, config);
}

absl::Status AddEndTokens(const Fields& fields, ModelConfig& config) {
  const Json* value = fields.Find("eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_unsigned() ||
        id.get<std::uint64_t>() >= static_cast<std::uint64_t>(config.vocabulary)) {
      return fields.Invalid("eos_token_id", absl::StrCat("has ", id.dump(), ", the vocabulary has ",
                                                         config.vocabulary));
    }
    const int token = id.get<int>();
    if (std::find(config.end_tokens.begin(), config.end_tokens.end(), token) ==
        config.end_tokens.end()) {
      config.end_tokens.push_back(token);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& folder_or_json) {
  std::error_code ignored;
  const std::filesystem::path given(folder_or_json);
  const bool is_file = std::filesystem::is_regular_file(given, ignored);
  const std::filesystem::path base = is_file ? given.parent_path() : given;
  const std::string path = is_file ? folder_or_json : (base / "config.json").string();
  KVF_ASSIGN_OR_RETURN(const Json json, ReadJsonObject(path));
  const Fields fields(path, json);

  ModelConfig config;
  KVF_ASSIGN_OR_RETURN(config.architecture, fields.StringOr("model_type", ""));
  if (config.architecture != "llama" && config.architecture != "mistral" &&
      config.architecture != "qwen2" && config.architecture != "qwen3") {
    return fields.Invalid("model_type",
                          absl::StrCat("is \"", config.architecture,
                                       "\", supported are llama, mistral, qwen2 and qwen3"));
  }
  KVF_RETURN_IF_ERROR(ReadSizes(fields, config));
  KVF_ASSIGN_OR_RETURN(config.rope_base, fields.FloatOr("rope_theta", 10000));
  KVF_RETURN_IF_ERROR(ReadRopeObject(fields, "rope_scaling", config));
  KVF_RETURN_IF_ERROR(ReadRopeObject(fields, "rope_parameters", config));
  KVF_RETURN_IF_ERROR(RefuseOthers(fields, config));
  KVF_ASSIGN_OR_RETURN(config.tied_embeddings, fields.BoolOr("tie_word_embeddings", false));
  config.attention_bias = config.architecture == "qwen2";
  config.qk_norm = config.architecture == "qwen3";

  KVF_RETURN_IF_ERROR(AddEndTokens(fields, config));
  const std::string generation_path = base / "generation_config.json";
  if (std::filesystem::exists(generation_path, ignored)) {
    KVF_ASSIGN_OR_RETURN(const Json generation, ReadJsonObject(generation_path));
    KVF_RETURN_IF_ERROR(AddEndTokens(Fields(generation_path, generation), config));
  }
  KVF_RETURN_IF_ERROR(config.Validate(path));
  return config;
}

}  // namespace kvferry::model
