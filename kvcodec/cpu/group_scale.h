#pragma once

#include <cmath>
#include <cstdint>

#include "kvcodec/half.h"
#include "kvcodec/lut.h"

// The quantizer of docs/format.md on one group, in fp32 with every operation rounded on its own.
namespace kvferry::codec::cpu {

struct GroupScale {
  std::uint16_t scale = 0;  // fp16, never negative, never -0
  std::uint16_t min = 0;    // fp16, never -0
  float min_value = 0;
  float inverse = 0;  // 0 when the scale is 0: every code is then 0
  bool fits = false;  // false: outside fp16
};

inline GroupScale MakeGroupScale(float low, float high, float levels) {
  GroupScale group;
  group.min = HalfFromFloat(low);
  if (group.min == 0x8000u) group.min = 0;
  if (!HalfIsFinite(group.min)) return group;
  group.min_value = FloatFromHalf(group.min);
  group.scale = HalfFromFloat((high - group.min_value) / levels);
  if ((group.scale & 0x8000u) != 0) group.scale = 0;  // the rounded min lies above the max
  if (!HalfIsFinite(group.scale)) return group;
  group.inverse = group.scale == 0 ? 0.0f : 1.0f / FloatFromHalf(group.scale);
  group.fits = true;
  return group;
}

inline std::uint8_t MakeCode(float value, const GroupScale& group, float levels) {
  const float code = std::nearbyint((value - group.min_value) * group.inverse);
  return static_cast<std::uint8_t>(code < 0.0f ? 0.0f : code > levels ? levels : code);
}

// Blocks with one scale per token: it is what a code of one is worth.
struct TokenScale {
  std::uint16_t scale = 0;  // fp16, never negative
  float inverse = 0;        // 0 when the scale is 0
  bool fits = false;        // false: outside fp16
};

inline TokenScale MakeTokenScale(float unit) {
  TokenScale token;
  token.scale = HalfFromFloat(unit);
  if (!HalfIsFinite(token.scale)) return token;
  token.inverse = token.scale == 0 ? 0.0f : 1.0f / FloatFromHalf(token.scale);
  token.fits = true;
  return token;
}

// The zero point of a channel of keys: the middle of what it has in the block.
struct KeyZero {
  std::uint16_t zero = 0;  // fp16, never -0
  bool fits = false;       // false: outside fp16
};

inline KeyZero MakeKeyZero(float low, float high) {
  KeyZero key;
  key.zero = HalfFromFloat((low + high) * 0.5f);
  if (key.zero == 0x8000u) key.zero = 0;
  key.fits = HalfIsFinite(key.zero);
  return key;
}

inline std::int8_t MakeInt8Code(float scaled) {
  const float code = std::nearbyint(scaled);
  return static_cast<std::int8_t>(code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code);
}

// Root mean square of `count` values. sums: of the squares, channel c in sums[c % 8] in the order
// of channels.
inline float RmsOf(const float (&sums)[8], int count) {
  const float even = (sums[0] + sums[4]) + (sums[2] + sums[6]);
  const float odd = (sums[1] + sums[5]) + (sums[3] + sums[7]);
  return std::sqrt((even + odd) / static_cast<float>(count));
}

inline std::uint32_t MakeLutCode(float scaled, const Lut& lut) {
  std::uint32_t code = 0;
  for (int i = 0; i + 1 < lut.count(); ++i) code += scaled > lut.middle(i) ? 1 : 0;
  return code;
}

}  // namespace kvferry::codec::cpu
