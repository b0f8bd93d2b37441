#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace kvferry::model {

// Writes GGUF bytes, right or wrong ones, for tests.
class GgufBuilder {
 public:
  static constexpr std::uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8,
                                 kArray = 9, kUint64 = 10;

  GgufBuilder& Uint32(std::string_view key, std::uint32_t value) {
    return Entry(key, kUint32, Raw(value));
  }
  GgufBuilder& Uint64(std::string_view key, std::uint64_t value) {
    return Entry(key, kUint64, Raw(value));
  }
  GgufBuilder& Float32(std::string_view key, float value) {
    return Entry(key, kFloat32, Raw(value));
  }
  GgufBuilder& Bool(std::string_view key, bool value) {
    return Entry(key, kBool, std::string(1, value ? '\1' : '\0'));
  }
  GgufBuilder& String(std::string_view key, std::string_view value) {
    return Entry(key, kString, Text(value));
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string body = Raw(kString) + Raw<std::uint64_t>(values.size());
    for (const std::string& value : values) body += Text(value);
    return Entry(key, kArray, body);
  }
  GgufBuilder& Int32s(std::string_view key, const std::vector<std::int32_t>& values) {
    std::string body = Raw(kInt32) + Raw<std::uint64_t>(values.size());
    for (const std::int32_t value : values) body += Raw(value);
    return Entry(key, kArray, body);
  }
  GgufBuilder& Float32s(std::string_view key, const std::vector<float>& values) {
    std::string body = Raw(kFloat32) + Raw<std::uint64_t>(values.size());
    for (const float value : values) body += Raw(value);
    return Entry(key, kArray, body);
  }
  // A metadata entry with a body of the caller's choice.
  GgufBuilder& Entry(std::string_view key, std::uint32_t type, std::string_view body) {
    metadata_ += Text(key) + Raw(type) + std::string(body);
    ++entries_;
    return *this;
  }

  // `sizes`: innermost first, as in the file.
  GgufBuilder& Tensor(std::string_view name, const std::vector<std::uint64_t>& sizes,
                      std::uint32_t type, std::string_view data) {
    data_.resize((data_.size() + 31) / 32 * 32, '\0');
    return TensorAt(name, sizes, type, data_.size(), data);
  }
  GgufBuilder& TensorAt(std::string_view name, const std::vector<std::uint64_t>& sizes,
                        std::uint32_t type, std::uint64_t offset, std::string_view data) {
    directory_ += Text(name) + Raw(static_cast<std::uint32_t>(sizes.size()));
    for (const std::uint64_t size : sizes) directory_ += Raw(size);
    directory_ += Raw(type) + Raw(offset);
    data_ += data;
    ++tensors_;
    return *this;
  }

  std::string Build() const {
    std::string bytes =
        "GGUF" + Raw<std::uint32_t>(3) + Raw(tensors_) + Raw(entries_) + metadata_ + directory_;
    if (tensors_ > 0) bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
    return bytes + data_;
  }

  template <typename T>
  static std::string Raw(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }
  static std::string Text(std::string_view value) {
    return Raw<std::uint64_t>(value.size()) + std::string(value);
  }

 private:
  std::string metadata_, directory_, data_;
  std::uint64_t entries_ = 0, tensors_ = 0;
};

inline std::string WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path.string();
}

}  // namespace kvferry::model
