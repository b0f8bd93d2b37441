#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/mapped_file.h"
#include "model/tensor_type.h"

namespace kvferry::model {

// A GGUF file (versions 2 and 3, little-endian), mapped: metadata and the directory of tensors.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
// Everything is checked when the file is opened; what an accessor returns lies inside the mapping
// and lives as long as this object. Immutable. Thread: any.
class GgufFile {
 public:
  // kNotFound: no such file. kInvalidArgument: not GGUF, another version, a tensor type that is not
  // supported (by name), a shape that cannot be. kDataLoss: ends too early. All name file and
  // field.
  static absl::StatusOr<GgufFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  bool Has(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }

  // Metadata. kNotFound: no such key. kInvalidArgument: the value has another type, or an integer
  // does not fit. Int takes every integer type, Float every floating-point and integer type.
  absl::StatusOr<std::int64_t> Int(std::string_view key) const;
  absl::StatusOr<double> Float(std::string_view key) const;
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<std::string_view> String(std::string_view key) const;
  absl::StatusOr<std::vector<std::int64_t>> Ints(std::string_view key) const;
  absl::StatusOr<std::vector<double>> Floats(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;

  // In file order.
  std::span<const StoredTensor> tensors() const { return tensors_; }
  // Null: no such tensor.
  const StoredTensor* FindTensor(std::string_view name) const;

 private:
  friend class GgufParser;

  enum class ValueType : std::uint32_t {
    kUint8 = 0,
    kInt8 = 1,
    kUint16 = 2,
    kInt16 = 3,
    kUint32 = 4,
    kInt32 = 5,
    kFloat32 = 6,
    kBool = 7,
    kString = 8,
    kArray = 9,
    kUint64 = 10,
    kInt64 = 11,
    kFloat64 = 12,
  };

  // A checked value: `data` holds exactly `count` values of `type`, as stored.
  struct Value {
    ValueType type = ValueType::kUint8;
    bool is_array = false;
    std::uint64_t count = 1;
    std::span<const std::uint8_t> data;
  };

  explicit GgufFile(MappedFile file) : file_(std::move(file)) {}

  absl::StatusOr<const Value*> Find(std::string_view key, bool is_array) const;
  absl::Status WrongType(std::string_view key, const Value& value, std::string_view wanted) const;
  static std::string TypeName(const Value& value);
  static std::size_t ScalarBytes(ValueType type);
  static std::optional<std::int64_t> IntAt(const Value& value, std::uint64_t index);
  static std::optional<double> FloatAt(const Value& value, std::uint64_t index);

  MappedFile file_;
  std::map<std::string, Value, std::less<>> metadata_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> tensor_index_;
};

}  // namespace kvferry::model
