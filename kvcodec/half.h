#pragma once

#include <bit>
#include <cstdint>

#include "kvcodec/kv_view.h"

// 16-bit floats by integer arithmetic: the same result on every machine and in every rounding mode.
namespace kvferry::codec {

inline float FloatFromHalf(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t exponent = (half >> 10) & 31, mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -tiny : tiny;
}

// Nearest, ties to even; what is too large becomes infinity, NaN stays NaN.
inline std::uint16_t HalfFromFloat(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 65536 and above
  if (magnitude < 0x33000000u) return sign;             // below 2^-25
  const std::uint32_t exponent = magnitude >> 23;
  // Shift that leaves the half's mantissa: 13 bits, more below 2^-14 (subnormals).
  const std::uint32_t shift = exponent < 113 ? 126 - exponent : 13;
  const std::uint32_t mantissa =
      exponent < 113 ? ((magnitude & 0x7fffffu) | 0x800000u) : magnitude - (112u << 23);
  const std::uint32_t half = mantissa >> shift, rest = mantissa & ((1u << shift) - 1);
  const std::uint32_t middle = 1u << (shift - 1);
  return static_cast<std::uint16_t>(
      sign | (half + (rest > middle || (rest == middle && (half & 1u) != 0) ? 1 : 0)));
}

// Nearest, ties to even; a NaN stays one.
inline std::uint16_t Bf16FromFloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float FloatFromBf16(std::uint16_t bf16) {
  return std::bit_cast<float>(std::uint32_t{bf16} << 16);
}

inline float FloatFromRaw16(Raw16 type, std::uint16_t value) {
  return type == Raw16::kFp16 ? FloatFromHalf(value) : FloatFromBf16(value);
}

inline bool HalfIsFinite(std::uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

}  // namespace kvferry::codec
