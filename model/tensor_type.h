#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvferry::model {

// How the values of a stored tensor are written. The Q types are GGUF's: blocks of 32 values along
// a row that share an fp16 scale (and, for Q4_1 and Q5_1, an fp16 minimum).
// NOLINTNEXTLINE(readability-identifier-naming): as GGUF spells them
enum class TensorType : std::uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1 };

struct TensorTypeInfo {
  std::string_view name;
  int block_values;  // values that are stored together
  int block_bytes;
};

constexpr TensorTypeInfo Describe(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return {"F32", 1, 4};
    case TensorType::kF16:
      return {"F16", 1, 2};
    case TensorType::kBF16:
      return {"BF16", 1, 2};
    case TensorType::kQ8_0:
      return {"Q8_0", 32, 34};
    case TensorType::kQ4_0:
      return {"Q4_0", 32, 18};
    case TensorType::kQ4_1:
      return {"Q4_1", 32, 20};
    case TensorType::kQ5_0:
      return {"Q5_0", 32, 22};
    case TensorType::kQ5_1:
      return {"Q5_1", 32, 24};
  }
  return {"unknown", 1, 0};
}

// Bytes of a tensor of this shape, outermost dimension first; nothing when a row is no whole number
// of blocks or the size does not fit 63 bits.
constexpr std::optional<std::uint64_t> StoredBytes(TensorType type,
                                                   std::span<const std::int64_t> shape) {
  constexpr std::uint64_t kLimit = std::numeric_limits<std::int64_t>::max();
  const TensorTypeInfo info = Describe(type);
  if (!shape.empty() && shape.back() % info.block_values != 0) return std::nullopt;
  std::uint64_t values = 1;
  for (const std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size != 0 && values > kLimit / static_cast<std::uint64_t>(size)) return std::nullopt;
    values *= static_cast<std::uint64_t>(size);
  }
  const std::uint64_t blocks = values / static_cast<std::uint64_t>(info.block_values);
  if (blocks > kLimit / static_cast<std::uint64_t>(info.block_bytes)) return std::nullopt;
  return blocks * static_cast<std::uint64_t>(info.block_bytes);
}

// A tensor as it lies in a mapped file.
struct StoredTensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<std::int64_t> shape;  // outermost first: a matrix is [rows, columns]
  std::span<const std::uint8_t> data;
};

}  // namespace kvferry::model
