#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/mapped_file.h"
#include "model/tensor_type.h"

namespace kvferry::model {

// The tensors of a Hugging Face directory: `model.safetensors`, or the shards that
// `model.safetensors.index.json` names. https://github.com/huggingface/safetensors
// What it returns lies inside the mappings and lives as long as this object. Immutable. Thread:
// any.
class SafetensorsFolder {
 public:
  // kNotFound: neither file is there. kInvalidArgument: no safetensors, a type that is not F32, F16
  // or BF16, offsets that do not fit shape and type. kDataLoss: ends too early. All name the file.
  static absl::StatusOr<SafetensorsFolder> Open(const std::string& folder);

  const std::string& path() const { return folder_; }
  // By name.
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  // Null: no such tensor.
  const StoredTensor* FindTensor(std::string_view name) const;

 private:
  explicit SafetensorsFolder(std::string folder) : folder_(std::move(folder)) {}

  absl::Status OpenShards(const std::string& index_path);
  absl::Status AddFile(const std::string& path);

  std::string folder_;
  std::vector<MappedFile> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace kvferry::model
