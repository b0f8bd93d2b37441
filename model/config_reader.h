#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model/gguf.h"
#include "model/model_config.h"

namespace kvferry::model {

// Both return a validated configuration. kInvalidArgument: an architecture, RoPE scaling, sliding
// window or other feature that this project does not compute, by name; a field that is missing or
// outside its range. All name the file.

// From the metadata of a GGUF file.
absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file);
// From config.json (and generation_config.json for end tokens) of a Hugging Face directory, or from
// a file of the former's kind.
absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& folder_or_json);
// Of whichever `path` is: a .gguf file or a Hugging Face directory.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

}  // namespace kvferry::model
