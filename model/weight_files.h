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

// Configuration and tensors of a model, whichever way they are written, or made up. Tensors go by
// their Hugging Face names ("model.layers.0.self_attn.q_proj.weight"). Immutable. Thread: any.
class WeightFiles {
 public:
  // `path`: a .gguf file or a Hugging Face directory. Errors: those of the readers.
  static absl::StatusOr<WeightFiles> Open(const std::string& path);
  // The shape of a config.json with random weights (model/random_weights.h). Errors: the reader's.
  static absl::StatusOr<WeightFiles> Random(const std::string& config_json);

  const ModelConfig& config() const { return config_; }
  // Of names, types, shapes and bytes of all tensors; of random ones: of the sizes.
  std::uint64_t Hash() const;

  // The values as fp32, rows in Hugging Face's order. kInvalidArgument: no such tensor or another
  // shape than `shape` (names both), a value that is not finite.
  absl::StatusOr<std::vector<float>> Read(std::string_view name,
                                          const std::vector<std::int64_t>& shape) const;

 private:
  WeightFiles() = default;

  std::string path_;
  ModelConfig config_;
  std::unique_ptr<GgufFile> gguf_;  // one of the two; random: none
  std::unique_ptr<SafetensorsFolder> safetensors_;
};

}  // namespace kvferry::model
