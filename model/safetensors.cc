#include "model/safetensors.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "model/json_file.h"

namespace kvferry::model {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // of the reference reader
constexpr std::size_t kMaxDimensions = 8;

absl::Status Invalid(const std::string& path, std::string_view name, std::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": tensor ", ToAbsl(name), " ", ToAbsl(problem)));
}

absl::StatusOr<TensorType> ParseType(const std::string& path, std::string_view name,
                                     const nlohmann::json& entry) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) return Invalid(path, name, "has no dtype");
  const auto& dtype = found->get_ref<const std::string&>();
  if (dtype == "F32") return TensorType::kF32;
  if (dtype == "F16") return TensorType::kF16;
  if (dtype == "BF16") return TensorType::kBF16;
  return Invalid(path, name,
                 absl::StrCat("is stored as ", dtype, "; supported are F32, F16 and BF16"));
}

absl::StatusOr<std::vector<std::int64_t>> ParseShape(const std::string& path, std::string_view name,
                                                     const nlohmann::json& entry) {
  const auto found = entry.find("shape");
  if (found == entry.end() || !found->is_array() || found->size() > kMaxDimensions) {
    return Invalid(path, name, "has no shape, or one of more than 8 dimensions");
  }
  std::vector<std::int64_t> shape;
  for (const auto& size : *found) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > (1ull << 62)) {
      return Invalid(path, name, "has a shape with something that is no size");
    }
    shape.push_back(size.get<std::int64_t>());
  }
  return shape;
}

absl::StatusOr<std::span<const std::uint8_t>> ParseOffsets(const std::string& path,
                                                           std::string_view name,
                                                           const nlohmann::json& entry,
                                                           std::span<const std::uint8_t> data) {
  const auto found = entry.find("data_offsets");
  if (found == entry.end() || !found->is_array() || found->size() != 2 ||
      !(*found)[0].is_number_unsigned() || !(*found)[1].is_number_unsigned()) {
    return Invalid(path, name, "has no data_offsets of two numbers");
  }
  const auto begin = (*found)[0].get<std::uint64_t>();
  const auto end = (*found)[1].get<std::uint64_t>();
  if (end < begin) return Invalid(path, name, "has data_offsets that end before they begin");
  if (end > data.size()) {
    return absl::DataLossError(absl::StrCat(path, ": truncated or corrupt: tensor ", ToAbsl(name),
                                            " ends at byte ", end,
                                            " of the data section, which has ", data.size()));
  }
  return data.subspan(begin, end - begin);
}

absl::StatusOr<StoredTensor> ParseTensor(const std::string& path, const std::string& name,
                                         const nlohmann::json& entry,
                                         std::span<const std::uint8_t> data) {
  if (!entry.is_object()) return Invalid(path, name, "has no description");
  StoredTensor tensor;
  tensor.name = name;
  KVF_ASSIGN_OR_RETURN(tensor.type, ParseType(path, name, entry));
  KVF_ASSIGN_OR_RETURN(tensor.shape, ParseShape(path, name, entry));
  KVF_ASSIGN_OR_RETURN(tensor.data, ParseOffsets(path, name, entry, data));
  const std::optional<std::uint64_t> size = StoredBytes(tensor.type, tensor.shape);
  if (!size || *size != tensor.data.size()) {
    return Invalid(path, name,
                   absl::StrCat("has ", tensor.data.size(), " bytes of data, its shape and type ",
                                ToAbsl(Describe(tensor.type).name), " want another number"));
  }
  return tensor;
}

}  // namespace

absl::StatusOr<SafetensorsFolder> SafetensorsFolder::Open(const std::string& folder) {
  SafetensorsFolder result(folder);
  const auto base = std::filesystem::path(folder);
  const std::string single = base / "model.safetensors";
  const std::string index = base / "model.safetensors.index.json";
  std::error_code ignored;
  if (std::filesystem::exists(index, ignored)) {
    KVF_RETURN_IF_ERROR(result.OpenShards(index));
  } else if (std::filesystem::exists(single, ignored)) {
    KVF_RETURN_IF_ERROR(result.AddFile(single));
  } else {
    return absl::NotFoundError(absl::StrCat(
        folder, ": neither model.safetensors nor model.safetensors.index.json is there"));
  }
  return result;
}

absl::Status SafetensorsFolder::OpenShards(const std::string& index_path) {
  KVF_ASSIGN_OR_RETURN(const auto index, ReadJsonObject(index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map is missing"));
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map.", name, " is no file name"));
    }
    const auto& file = shard.get_ref<const std::string&>();
    if (file.empty() || std::filesystem::path(file).filename() != file) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map.", name, " is \"",
                                                     file, "\", not a file of this folder"));
    }
    shards.insert(file);
  }
  for (const std::string& shard : shards) {
    KVF_RETURN_IF_ERROR(AddFile(std::filesystem::path(folder_) / shard));
  }
  for (const auto& [name, shard] : map->items()) {
    if (tensors_.find(name) == tensors_.end()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": tensor ", name, " is not in ",
                                                     shard.get_ref<const std::string&>()));
    }
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFolder::AddFile(const std::string& path) {
  KVF_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  const auto bytes = file.bytes();
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return absl::DataLossError(absl::StrCat(path, ": truncated: ", bytes.size(), " bytes"));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a header of ", header_bytes, " bytes: this is no safetensors file"));
  }
  if (header_bytes > bytes.size() - sizeof(header_bytes)) {
    return absl::DataLossError(absl::StrCat(path, ": truncated or corrupt: the header needs ",
                                            header_bytes, " bytes, the file has ",
                                            bytes.size() - sizeof(header_bytes), " left"));
  }
  const auto header_text = bytes.subspan(sizeof(header_bytes), header_bytes);
  KVF_ASSIGN_OR_RETURN(
      const auto header,
      ParseJsonObject(absl::StrCat(path, ": header"),
                      {reinterpret_cast<const char*>(header_text.data()), header_text.size()}));
  const auto data = bytes.subspan(sizeof(header_bytes) + header_bytes);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    KVF_ASSIGN_OR_RETURN(auto tensor, ParseTensor(path, name, entry, data));
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      return Invalid(path, name, "is in two files");
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

const StoredTensor* SafetensorsFolder::FindTensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace kvferry::model
