#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/gguf.h"
#include "model/model_config.h"
#include "model/safetensors.h"

namespace kvferry::model {

// Configuration and stored tensors of a model, whichever way they are written. Tensors go by their
// Hugging Face names ("model.layers.0.self_attn.q_proj.weight"). Immutable. Thread: any.
class WeightFiles {
 public:
  // `path`: a .gguf file or a Hugging Face directory. Errors: those of the readers.
  static absl::StatusOr<WeightFiles> Open(const std::string& path);

  const ModelConfig& config() const { return config_; }
  // Of names, types, shapes and bytes of all tensors.
  std::uint64_t Hash() const;

  // The values as fp32, rows in Hugging Face's order. kInvalidArgument: no such tensor or another
  // shape than `shape` (names both), a value that is not finite.
  absl::StatusOr<std::vector<float>> Read(std::string_view name,
                                          const std::vector<std::int64_t>& shape) const;

 private:
  WeightFiles() = default;

  std::string path_;
  ModelConfig config_;
  std::unique_ptr<GgufFile> gguf_;  // one of the two
  std::unique_ptr<SafetensorsFolder> safetensors_;
};

}  // namespace kvferry::model
