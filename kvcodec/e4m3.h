#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// 8-bit floats of fp8 blocks (OCP E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa, no
// infinity): the same result on every machine.
namespace kvferry::codec {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr float kE4m3LeastNormal = 0x1p-6f;

// Nearest, ties to even; what is too large becomes +-448, and a zero has no sign.
inline std::uint8_t E4m3FromFloat(float value) {
  const float magnitude = std::fmin(std::fabs(value), kE4m3Max);
  std::uint32_t code = 0;
  if (magnitude < kE4m3LeastNormal) {
    code = static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p9f));
  } else {
    const auto bits = std::bit_cast<std::uint32_t>(magnitude);
    code = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3);
  }
  if (code == 0) return 0;
  return static_cast<std::uint8_t>(code | (value < 0 ? 0x80u : 0u));
}

// 0x7f and 0xff, which no quantizer writes, are +-480 here.
inline float FloatFromE4m3(std::uint8_t code) {
  const std::uint32_t exponent = code >> 3 & 15u, mantissa = code & 7u;
  const float magnitude = exponent == 0
                              ? static_cast<float>(mantissa) * 0x1p-9f
                              : std::bit_cast<float>(((exponent + 120) << 23) | (mantissa << 20));
  return (code & 0x80u) != 0 ? -magnitude : magnitude;
}

}  // namespace kvferry::codec
