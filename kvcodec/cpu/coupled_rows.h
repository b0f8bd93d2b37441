#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvcodec/codebooks.h"
#include "kvcodec/codec.h"

// What both CPU ways through coupled blocks share: a token's row of codes, and the rotation of its
// keys.
namespace kvferry::codec::cpu {

inline constexpr int kMostHalf = 128;  // of head_dim

// A row's codes, head_dim / channels of them, from the least significant bit on.
inline void PutRow(const std::uint32_t* codes, int head_dim, const Coupling& coupling,
                   std::byte* row) {
  std::uint32_t pending = 0;
  int bits = 0;
  for (int group = 0; group < head_dim / coupling.channels; ++group) {
    pending |= codes[group] << bits;
    for (bits += coupling.bits; bits >= 8; bits -= 8, pending >>= 8) {
      *row++ = static_cast<std::byte>(pending & 0xffu);
    }
  }
}

// Sizes are known: a centroid is copied by an instruction or two, not by a call, and codes that end
// with a byte are taken out of it together, so that no code waits for the one before it while their
// centroids come from a cache further away.
template <int kChannels, int kBits>
inline void GetRowOf(const std::byte* row, int head_dim, const float* by_code, float* out) {
  constexpr int kCodes = kBits % 8 == 0 ? 1 : kBits % 4 == 0 ? 2 : 4, kBytes = kCodes * kBits / 8;
  static_assert(kCodes * kBits % 8 == 0 && kBytes <= 8);
  constexpr std::size_t kBook = std::size_t{kChannels} << kBits;
  constexpr std::uint64_t kMask = (std::uint64_t{1} << kBits) - 1;
  for (int channel = 0; channel < head_dim; channel += kCodes * kChannels, row += kBytes) {
    std::uint64_t codes = 0;
    for (int i = 0; i < kBytes; ++i) codes |= static_cast<std::uint64_t>(row[i]) << (8 * i);
    for (int i = 0; i < kCodes; ++i, by_code += kBook) {
      std::memcpy(out + channel + i * kChannels,
                  by_code + (codes >> (i * kBits) & kMask) * kChannels, kChannels * sizeof(float));
    }
  }
}

// The centroids of a row's codes. coupling: one that IsCoupling. by_code: of its side. out:
// [head_dim].
inline void GetRow(const std::byte* row, int head_dim, const Coupling& coupling,
                   const float* by_code, float* out) {
  if (coupling.channels == 2 && coupling.bits == 4)
    return GetRowOf<2, 4>(row, head_dim, by_code, out);
  if (coupling.channels == 2) return GetRowOf<2, 8>(row, head_dim, by_code, out);
  if (coupling.channels == 4) return GetRowOf<4, 8>(row, head_dim, by_code, out);
  if (coupling.bits == 8) return GetRowOf<8, 8>(row, head_dim, by_code, out);
  return GetRowOf<8, 10>(row, head_dim, by_code, out);
}

// The angles of a block's tokens. Every operation is rounded on its own (docs/format.md).
class BlockTurns {
 public:
  // `rotation` outlives it.
  BlockTurns(const KeyRotation& rotation, std::int64_t position) : rotation_(rotation) {
    rotation.Angles(position, cos_.data(), sin_.data());
  }

  // One head of a token, [head_dim]: from behind RoPE to before it.
  void Back(int token, float* x) const {
    Turn(token, [&](int i, float cos, float sin) {
      const float low = x[i], high = x[i + half()];
      x[i] = low * cos + high * sin;
      x[i + half()] = high * cos - low * sin;
    });
  }
  void Forward(int token, float* x) const {
    Turn(token, [&](int i, float cos, float sin) {
      const float low = x[i], high = x[i + half()];
      x[i] = low * cos - high * sin;
      x[i + half()] = high * cos + low * sin;
    });
  }
  int half() const { return rotation_.half(); }
  // Of the first token alone: [half].
  const float* cos() const { return cos_.data(); }
  const float* sin() const { return sin_.data(); }

 private:
  template <class Pair>
  void Turn(int token, Pair pair) const {
    const float* cos = rotation_.token_cos() + static_cast<std::ptrdiff_t>(token) * half();
    const float* sin = rotation_.token_sin() + static_cast<std::ptrdiff_t>(token) * half();
    for (int i = 0; i < half(); ++i) {
      pair(i, cos_[i] * cos[i] - sin_[i] * sin[i], sin_[i] * cos[i] + cos_[i] * sin[i]);
    }
  }

  const KeyRotation& rotation_;
  std::array<float, kMostHalf> cos_, sin_;
};

}  // namespace kvferry::codec::cpu
