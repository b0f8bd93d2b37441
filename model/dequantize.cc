#include "model/dequantize.h"

#include <bit>
#include <cstddef>
#include <cstring>

#include "kvcodec/half.h"

namespace kvferry::model {
namespace {

constexpr int kBlock = 32;

float LoadHalf(const std::uint8_t* data) {
  std::uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return codec::FloatFromHalf(bits);
}

// One block each: `at` its bytes, `out` its 32 values. Low nibbles are values 0-15, high 16-31.
void DequantizeQ8_0(const std::uint8_t* at, float* out) {
  const float scale = LoadHalf(at);
  for (int i = 0; i < kBlock; ++i) out[i] = scale * static_cast<std::int8_t>(at[2 + i]);
}

void DequantizeQ4_0(const std::uint8_t* at, float* out) {
  const float scale = LoadHalf(at);
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = scale * static_cast<float>((at[2 + i] & 15) - 8);
    out[i + 16] = scale * static_cast<float>((at[2 + i] >> 4) - 8);
  }
}

void DequantizeQ4_1(const std::uint8_t* at, float* out) {
  const float scale = LoadHalf(at);
  const float min = LoadHalf(at + 2);
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = scale * static_cast<float>(at[4 + i] & 15) + min;
    out[i + 16] = scale * static_cast<float>(at[4 + i] >> 4) + min;
  }
}

// The fifth bit of value i is bit i of a 32-bit word.
void DequantizeQ5_0(const std::uint8_t* at, float* out) {
  const float scale = LoadHalf(at);
  std::uint32_t high;
  std::memcpy(&high, at + 2, sizeof(high));
  for (int i = 0; i < kBlock / 2; ++i) {
    const int low_value = (at[6 + i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int high_value = (at[6 + i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    out[i] = scale * static_cast<float>(low_value - 16);
    out[i + 16] = scale * static_cast<float>(high_value - 16);
  }
}

void DequantizeQ5_1(const std::uint8_t* at, float* out) {
  const float scale = LoadHalf(at);
  const float min = LoadHalf(at + 2);
  std::uint32_t high;
  std::memcpy(&high, at + 4, sizeof(high));
  for (int i = 0; i < kBlock / 2; ++i) {
    const int low_value = (at[8 + i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int high_value = (at[8 + i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    out[i] = scale * static_cast<float>(low_value) + min;
    out[i + 16] = scale * static_cast<float>(high_value) + min;
  }
}

template <typename Block>
void EachBlock(TensorType type, std::span<const std::uint8_t> data, float* out, Block block) {
  const TensorTypeInfo info = Describe(type);
  const std::size_t blocks = data.size() / static_cast<std::size_t>(info.block_bytes);
  for (std::size_t i = 0; i < blocks; ++i) {
    block(data.data() + i * static_cast<std::size_t>(info.block_bytes),
          out + i * static_cast<std::size_t>(info.block_values));
  }
}

}  // namespace

void Dequantize(TensorType type, std::span<const std::uint8_t> data, float* out) {
  if (data.empty()) return;
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out, data.data(), data.size());
      return;
    case TensorType::kF16:
      return EachBlock(type, data, out, [](const auto* at, float* to) { *to = LoadHalf(at); });
    case TensorType::kBF16:
      return EachBlock(type, data, out, [](const auto* at, float* to) {
        std::uint16_t bits;
        std::memcpy(&bits, at, sizeof(bits));
        *to = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
      });
    case TensorType::kQ8_0:
      return EachBlock(type, data, out, DequantizeQ8_0);
    case TensorType::kQ4_0:
      return EachBlock(type, data, out, DequantizeQ4_0);
    case TensorType::kQ4_1:
      return EachBlock(type, data, out, DequantizeQ4_1);
    case TensorType::kQ5_0:
      return EachBlock(type, data, out, DequantizeQ5_0);
    case TensorType::kQ5_1:
      return EachBlock(type, data, out, DequantizeQ5_1);
  }
}

}  // namespace kvferry::model
