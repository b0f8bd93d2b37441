#include "model/gguf.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::model {
namespace {

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxKeyBytes = 65535;  // of the specification
constexpr std::uint32_t kMaxDimensions = 4;

template <typename T>
T LoadAs(const std::uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// ggml's numbers of tensor types, for the error that refuses one by name.
constexpr std::string_view kGgmlTypeNames[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

std::optional<TensorType> FromGgmlType(std::uint32_t number) {
  switch (number) {
    case 0:
      return TensorType::kF32;
    case 1:
      return TensorType::kF16;
    case 2:
      return TensorType::kQ4_0;
    case 3:
      return TensorType::kQ4_1;
    case 6:
      return TensorType::kQ5_0;
    case 7:
      return TensorType::kQ5_1;
    case 8:
      return TensorType::kQ8_0;
    case 30:
      return TensorType::kBF16;
    default:
      return std::nullopt;
  }
}

std::string GgmlTypeName(std::uint32_t number) {
  if (number < std::size(kGgmlTypeNames)) {
    return absl::StrCat(ToAbsl(kGgmlTypeNames[number]), " (ggml type ", number, ")");
  }
  return absl::StrCat("ggml type ", number);
}

}  // namespace

// Reads a mapped file front to back; every length is compared with what is left before it is used.
class GgufParser {
 public:
  explicit GgufParser(GgufFile& out) : out_(out), bytes_(out.file_.bytes()) {}

  absl::Status Parse() {
    KVF_ASSIGN_OR_RETURN(const auto magic, Read<std::uint32_t>("magic"));
    if (magic != kMagic) return Invalid("magic", "is not \"GGUF\": this is no GGUF file");
    KVF_ASSIGN_OR_RETURN(const auto version, Read<std::uint32_t>("version"));
    if (version != 2 && version != 3) {
      return Invalid("version", absl::StrCat("is ", version, ", supported are 2 and 3"));
    }
    KVF_ASSIGN_OR_RETURN(const auto tensors, Read<std::uint64_t>("tensor_count"));
    KVF_ASSIGN_OR_RETURN(const auto values, Read<std::uint64_t>("metadata_kv_count"));
    for (std::uint64_t i = 0; i < values; ++i) KVF_RETURN_IF_ERROR(ParseMetadata(i));
    return ParseTensors(tensors);
  }

 private:
  using ValueType = GgufFile::ValueType;

  struct Placed {
    StoredTensor tensor;
    std::uint64_t offset;  // into the data section
  };

  std::uint64_t Left() const { return bytes_.size() - at_; }

  absl::Status Invalid(std::string_view field, std::string_view problem) const {
    return absl::InvalidArgumentError(
        absl::StrCat(out_.path(), ": ", ToAbsl(field), " ", ToAbsl(problem)));
  }

  absl::Status Truncated(std::string_view field, std::uint64_t wanted) const {
    return absl::DataLossError(absl::StrCat(out_.path(), ": truncated or corrupt: ", ToAbsl(field),
                                            " needs ", wanted, " bytes at offset ", at_,
                                            ", the file has ", Left(), " left"));
  }

  absl::StatusOr<std::span<const std::uint8_t>> Take(std::string_view field, std::uint64_t size) {
    if (size > Left()) return Truncated(field, size);
    const auto part = bytes_.subspan(at_, size);
    at_ += size;
    return part;
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view field) {
    KVF_ASSIGN_OR_RETURN(const auto data, Take(field, sizeof(T)));
    return LoadAs<T>(data.data());
  }

  absl::StatusOr<std::string_view> ReadString(std::string_view field) {
    KVF_ASSIGN_OR_RETURN(const auto size, Read<std::uint64_t>(field));
    KVF_ASSIGN_OR_RETURN(const auto data, Take(field, size));
    return std::string_view(reinterpret_cast<const char*>(data.data()), data.size());
  }

  absl::StatusOr<ValueType> ReadValueType(std::string_view field) {
    KVF_ASSIGN_OR_RETURN(const auto number, Read<std::uint32_t>(field));
    if (number > static_cast<std::uint32_t>(ValueType::kFloat64)) {
      return Invalid(field, absl::StrCat("has the unknown value type ", number));
    }
    return static_cast<ValueType>(number);
  }

  absl::Status ParseMetadata(std::uint64_t index) {
    const std::string which = absl::StrCat("metadata entry ", index);
    KVF_ASSIGN_OR_RETURN(const auto key_view, ReadString(which));
    if (key_view.empty() || key_view.size() > kMaxKeyBytes) {
      return Invalid(which, absl::StrCat("has a key of ", key_view.size(), " bytes"));
    }
    const std::string key(key_view);
    const std::string field = absl::StrCat("metadata ", key);

    GgufFile::Value value;
    KVF_ASSIGN_OR_RETURN(value.type, ReadValueType(field));
    if (value.type == ValueType::kArray) {
      value.is_array = true;
      KVF_ASSIGN_OR_RETURN(value.type, ReadValueType(field));
      if (value.type == ValueType::kArray) {
        return Invalid(field, "is an array of arrays, which no supported model has");
      }
      KVF_ASSIGN_OR_RETURN(value.count, Read<std::uint64_t>(field));
    }
    KVF_ASSIGN_OR_RETURN(value.data, TakeValues(field, value));
    if (!out_.metadata_.emplace(key, value).second) return Invalid(field, "appears twice");
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<const std::uint8_t>> TakeValues(const std::string& field,
                                                           const GgufFile::Value& value) {
    if (value.type == ValueType::kString) {
      const std::uint64_t begin = at_;
      for (std::uint64_t i = 0; i < value.count; ++i) {
        KVF_RETURN_IF_ERROR(ReadString(field).status());
      }
      return bytes_.subspan(begin, at_ - begin);
    }
    const std::uint64_t size = GgufFile::ScalarBytes(value.type);
    if (value.count > Left() / size) {
      return absl::DataLossError(absl::StrCat(out_.path(), ": truncated or corrupt: ", field,
                                              " announces ", value.count, " values of ", size,
                                              " bytes, the file has ", Left(), " bytes left"));
    }
    return Take(field, value.count * size);
  }

  absl::Status ParseTensors(std::uint64_t count) {
    std::vector<Placed> placed;
    for (std::uint64_t i = 0; i < count; ++i) {
      KVF_ASSIGN_OR_RETURN(auto one, ParseTensor(i));
      placed.push_back(std::move(one));
    }
    std::uint64_t alignment = kDefaultAlignment;
    if (out_.Has("general.alignment")) {
      KVF_ASSIGN_OR_RETURN(const auto value, out_.Int("general.alignment"));
      if (value < 1 || value > (1 << 20) || (value & (value - 1)) != 0) {
        return Invalid("metadata general.alignment",
                       absl::StrCat("is ", value, ", no power of two up to 1 MiB"));
      }
      alignment = static_cast<std::uint64_t>(value);
    }
    if (const std::uint64_t rest = at_ % alignment; rest != 0 && !placed.empty()) {
      KVF_RETURN_IF_ERROR(Take("padding before the tensor data", alignment - rest).status());
    }
    const auto section = bytes_.subspan(at_);
    for (Placed& one : placed) KVF_RETURN_IF_ERROR(Place(std::move(one), section));
    return absl::OkStatus();
  }

  absl::StatusOr<Placed> ParseTensor(std::uint64_t index) {
    const std::string which = absl::StrCat("tensor ", index);
    KVF_ASSIGN_OR_RETURN(const auto name, ReadString(which));
    if (name.empty() || name.size() > kMaxKeyBytes) {
      return Invalid(which, absl::StrCat("has a name of ", name.size(), " bytes"));
    }
    Placed placed;
    placed.tensor.name = std::string(name);
    const std::string field = absl::StrCat("tensor ", placed.tensor.name);
    KVF_ASSIGN_OR_RETURN(const auto dimensions, Read<std::uint32_t>(field));
    if (dimensions < 1 || dimensions > kMaxDimensions) {
      return Invalid(field, absl::StrCat("has ", dimensions, " dimensions, 1 to 4 are possible"));
    }
    std::vector<std::int64_t>& shape = placed.tensor.shape;
    shape.resize(dimensions);
    for (std::uint32_t i = 0; i < dimensions; ++i) {  // the file has the innermost first
      KVF_ASSIGN_OR_RETURN(const auto size, Read<std::uint64_t>(field));
      if (size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return Invalid(field, absl::StrCat("has a dimension of ", size));
      }
      shape[dimensions - 1 - i] = static_cast<std::int64_t>(size);
    }
    KVF_ASSIGN_OR_RETURN(const auto number, Read<std::uint32_t>(field));
    const std::optional<TensorType> type = FromGgmlType(number);
    if (!type) {
      return Invalid(field, absl::StrCat("is stored as ", GgmlTypeName(number),
                                         "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 "
                                         "and Q5_1. Convert the model to one of them"));
    }
    placed.tensor.type = *type;
    KVF_ASSIGN_OR_RETURN(placed.offset, Read<std::uint64_t>(field));
    return placed;
  }

  absl::Status Place(Placed placed, std::span<const std::uint8_t> section) {
    StoredTensor& tensor = placed.tensor;
    const std::string field = absl::StrCat("tensor ", tensor.name);
    const std::optional<std::uint64_t> size = StoredBytes(tensor.type, tensor.shape);
    if (!size) {
      return Invalid(field,
                     absl::StrCat("has a shape that ", ToAbsl(Describe(tensor.type).name),
                                  " cannot store (innermost dimension ", tensor.shape.back(), ")"));
    }
    if (placed.offset > section.size() || *size > section.size() - placed.offset) {
      return absl::DataLossError(absl::StrCat(out_.path(), ": truncated or corrupt: ", field,
                                              " needs ", *size, " bytes at offset ", placed.offset,
                                              " of the data section, which has ", section.size()));
    }
    tensor.data = section.subspan(placed.offset, *size);
    if (!out_.tensor_index_.emplace(tensor.name, out_.tensors_.size()).second) {
      return Invalid(field, "appears twice");
    }
    out_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  GgufFile& out_;
  std::span<const std::uint8_t> bytes_;
  std::uint64_t at_ = 0;
};

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  KVF_ASSIGN_OR_RETURN(auto mapped, MappedFile::Open(path));
  GgufFile file(std::move(mapped));
  KVF_RETURN_IF_ERROR(GgufParser(file).Parse());
  return file;
}

const StoredTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::size_t GgufFile::ScalarBytes(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
    case ValueType::kString:
    case ValueType::kArray:
      return 8;
  }
  return 8;
}

std::string GgufFile::TypeName(const Value& value) {
  constexpr std::string_view kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                         "int32",  "float32", "bool",   "string", "array",
                                         "uint64", "int64",   "float64"};
  const std::string name(kNames[static_cast<std::size_t>(value.type)]);
  return value.is_array ? absl::StrCat("array of ", name) : name;
}

absl::StatusOr<const GgufFile::Value*> GgufFile::Find(std::string_view key, bool is_array) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) {
    return absl::NotFoundError(absl::StrCat(path(), ": metadata ", ToAbsl(key), " is missing"));
  }
  if (found->second.is_array != is_array) {
    return WrongType(key, found->second, is_array ? "an array" : "a single value");
  }
  return &found->second;
}

absl::Status GgufFile::WrongType(std::string_view key, const Value& value,
                                 std::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(path(), ": metadata ", ToAbsl(key), " is ",
                                                 TypeName(value), ", expected ", ToAbsl(wanted)));
}

std::optional<std::int64_t> GgufFile::IntAt(const Value& value, std::uint64_t index) {
  const std::uint8_t* data = value.data.data() + index * ScalarBytes(value.type);
  switch (value.type) {
    case ValueType::kUint8:
      return *data;
    case ValueType::kInt8:
      return LoadAs<std::int8_t>(data);
    case ValueType::kUint16:
      return LoadAs<std::uint16_t>(data);
    case ValueType::kInt16:
      return LoadAs<std::int16_t>(data);
    case ValueType::kUint32:
      return LoadAs<std::uint32_t>(data);
    case ValueType::kInt32:
      return LoadAs<std::int32_t>(data);
    case ValueType::kInt64:
      return LoadAs<std::int64_t>(data);
    case ValueType::kUint64: {
      const auto wide = LoadAs<std::uint64_t>(data);
      if (wide > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return std::nullopt;
      }
      return static_cast<std::int64_t>(wide);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> GgufFile::FloatAt(const Value& value, std::uint64_t index) {
  const std::uint8_t* data = value.data.data() + index * ScalarBytes(value.type);
  if (value.type == ValueType::kFloat32) return LoadAs<float>(data);
  if (value.type == ValueType::kFloat64) return LoadAs<double>(data);
  const std::optional<std::int64_t> whole = IntAt(value, index);
  if (!whole) return std::nullopt;
  return static_cast<double>(*whole);
}

absl::StatusOr<std::int64_t> GgufFile::Int(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, false));
  const std::optional<std::int64_t> result = IntAt(*value, 0);
  if (!result) return WrongType(key, *value, "an integer below 2^63");
  return *result;
}

absl::StatusOr<double> GgufFile::Float(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, false));
  const std::optional<double> result = FloatAt(*value, 0);
  if (!result) return WrongType(key, *value, "a number");
  return *result;
}

absl::StatusOr<bool> GgufFile::Bool(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, false));
  if (value->type != ValueType::kBool) return WrongType(key, *value, "bool");
  return value->data[0] != 0;
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, false));
  if (value->type != ValueType::kString) return WrongType(key, *value, "string");
  const auto text = value->data.subspan(sizeof(std::uint64_t));
  return std::string_view(reinterpret_cast<const char*>(text.data()), text.size());
}

absl::StatusOr<std::vector<std::int64_t>> GgufFile::Ints(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, true));
  std::vector<std::int64_t> result;
  if (value->type == ValueType::kString) return WrongType(key, *value, "an array of integers");
  result.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const std::optional<std::int64_t> one = IntAt(*value, i);
    if (!one) return WrongType(key, *value, "an array of integers below 2^63");
    result.push_back(*one);
  }
  return result;
}

absl::StatusOr<std::vector<double>> GgufFile::Floats(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, true));
  std::vector<double> result;
  if (value->type == ValueType::kString) return WrongType(key, *value, "an array of numbers");
  result.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const std::optional<double> one = FloatAt(*value, i);
    if (!one) return WrongType(key, *value, "an array of numbers");
    result.push_back(*one);
  }
  return result;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  KVF_ASSIGN_OR_RETURN(const Value* value, Find(key, true));
  if (value->type != ValueType::kString) return WrongType(key, *value, "an array of strings");
  std::vector<std::string_view> result;
  result.reserve(value->count);
  const std::uint8_t* at = value->data.data();  // lengths were checked when the file was opened
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const auto size = LoadAs<std::uint64_t>(at);
    at += sizeof(size);
    result.emplace_back(reinterpret_cast<const char*>(at), size);
    at += size;
  }
  return result;
}

}  // namespace kvferry::model
