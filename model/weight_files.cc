#include "model/weight_files.h"

#include <isa-l/crc64.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "model/config_reader.h"
#include "model/dequantize.h"
#include "model/random_weights.h"

namespace kvferry::model {
namespace {

constexpr std::string_view kLayerPrefix = "model.layers.";

// What a Hugging Face name of a tensor is called in GGUF: whole names, then parts of a layer.
constexpr std::pair<std::string_view, std::string_view> kNames[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

std::string GgufName(std::string_view name) {
  for (const auto& [theirs, ours] : kNames) {
    if (name == theirs) return std::string(ours);
  }
  std::string_view rest = name.substr(std::min(name.size(), kLayerPrefix.size()));
  const std::size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return std::string(name);
  const std::string_view layer = rest.substr(0, dot);
  rest.remove_prefix(dot + 1);
  for (const auto& [theirs, ours] : kLayerNames) {
    if (rest.starts_with(theirs) && rest.substr(theirs.size()).starts_with('.')) {
      return absl::StrCat("blk.", ToAbsl(layer), ".", ToAbsl(ours),
                          ToAbsl(rest.substr(theirs.size())));
    }
  }
  return std::string(name);
}

// GGUF's llama files keep the two halves of every rotated pair side by side: row (head, i, half) is
// Hugging Face's row (head, half, i).
void UnpermuteRows(std::vector<float>& values, std::size_t heads, std::size_t head_dim) {
  const std::size_t columns = values.size() / (heads * head_dim);
  std::vector<float> head(head_dim * columns);
  for (std::size_t h = 0; h < heads; ++h) {
    float* rows = values.data() + h * head.size();
    for (std::size_t i = 0; i < head_dim / 2; ++i) {
      for (std::size_t half = 0; half < 2; ++half) {
        std::copy_n(rows + (2 * i + half) * columns, columns,
                    head.data() + (half * (head_dim / 2) + i) * columns);
      }
    }
    std::copy(head.begin(), head.end(), rows);
  }
}

std::uint64_t HashTensor(std::uint64_t hash, const StoredTensor& tensor) {
  const auto add = [&hash](const void* data, std::size_t size) {
    hash = crc64_ecma_refl(hash, static_cast<const unsigned char*>(data), size);
  };
  add(tensor.name.data(), tensor.name.size());
  add(&tensor.type, sizeof(tensor.type));
  add(tensor.shape.data(), tensor.shape.size() * sizeof(tensor.shape[0]));
  add(tensor.data.data(), tensor.data.size());
  return hash;
}

}  // namespace

absl::StatusOr<WeightFiles> WeightFiles::Open(const std::string& path) {
  WeightFiles files;
  files.path_ = path;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    KVF_ASSIGN_OR_RETURN(files.config_, ReadHuggingFaceConfig(path));
    KVF_ASSIGN_OR_RETURN(auto folder, SafetensorsFolder::Open(path));
    files.safetensors_ = std::make_unique<SafetensorsFolder>(std::move(folder));
  } else {
    KVF_ASSIGN_OR_RETURN(auto file, GgufFile::Open(path));
    KVF_ASSIGN_OR_RETURN(files.config_, ReadGgufConfig(file));
    files.gguf_ = std::make_unique<GgufFile>(std::move(file));
  }
  return files;
}

absl::StatusOr<WeightFiles> WeightFiles::Random(const std::string& config_json) {
  WeightFiles files;
  files.path_ = config_json;
  KVF_ASSIGN_OR_RETURN(files.config_, ReadHuggingFaceConfig(config_json));
  return files;
}

std::uint64_t WeightFiles::Hash() const {
  std::uint64_t hash = 0;
  if (gguf_ != nullptr) {
    for (const StoredTensor& tensor : gguf_->tensors()) hash = HashTensor(hash, tensor);
  } else if (safetensors_ != nullptr) {
    for (const auto& [name, tensor] : safetensors_->tensors()) hash = HashTensor(hash, tensor);
  } else {
    for (const int size : {config_.layers, config_.hidden, config_.intermediate, config_.q_heads,
                           config_.kv_heads, config_.head_dim, config_.vocabulary}) {
      hash = crc64_ecma_refl(hash, reinterpret_cast<const unsigned char*>(&size), sizeof(size));
    }
  }
  return hash;
}

absl::StatusOr<std::vector<float>> WeightFiles::Read(std::string_view name,
                                                     const std::vector<std::int64_t>& shape) const {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  std::vector<float> values(count);
  if (gguf_ == nullptr && safetensors_ == nullptr) {
    FillRandomTensor(name, shape.back(), values);
    return values;
  }
  const std::string stored_name = gguf_ != nullptr ? GgufName(name) : std::string(name);
  const StoredTensor* tensor =
      gguf_ != nullptr ? gguf_->FindTensor(stored_name) : safetensors_->FindTensor(stored_name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor ", stored_name, " is missing"));
  }
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ", stored_name, " is [", absl::StrJoin(tensor->shape, ", "),
                     "], the configuration wants [", absl::StrJoin(shape, ", "), "]"));
  }
  Dequantize(tensor->type, tensor->data, values.data());
  const auto bad = std::find_if_not(values.begin(), values.end(),
                                    [](float value) { return std::isfinite(value); });
  if (bad != values.end()) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor ", stored_name, " has ", *bad,
                                                   " at index ", bad - values.begin()));
  }
  if (gguf_ != nullptr && config_.architecture == "llama") {
    if (absl::StrContains(stored_name, ".attn_q.")) {
      UnpermuteRows(values, config_.q_heads, config_.head_dim);
    } else if (absl::StrContains(stored_name, ".attn_k.")) {
      UnpermuteRows(values, config_.kv_heads, config_.head_dim);
    }
  }
  return values;
}

}  // namespace kvferry::model
