#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>

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

// kCodes codes of a row, from that of a group on, a multiple of kCodes. What is above them is not
// zero.
template <int kBits, int kCodes = 1>
inline std::uint64_t CodesFrom(const std::byte* row, std::size_t group) {
  constexpr int kMostOffset = 8 - std::gcd(kCodes * kBits, 8);  // in the first byte
  constexpr unsigned kBytes = (kCodes * kBits + kMostOffset + 7) / 8;
  constexpr unsigned kAtOnce = std::bit_floor(kBytes);  // by one instruction
  static_assert(kBytes <= 8);
  const std::size_t bit = group * kBits;
  std::uint64_t codes = 0;
  std::memcpy(&codes, row + bit / 8, kAtOnce);
  for (unsigned i = kAtOnce; i < kBytes; ++i) {
    codes |= static_cast<std::uint64_t>(row[bit / 8 + i]) << (8 * i);
  }
  return kMostOffset == 0 ? codes : codes >> (bit % 8);
}

template <int kChannels, int kBits>
struct CouplingOf {};

// Calls use(CouplingOf) with the sizes of a coupling that IsCoupling, known when compiled.
template <class Use>
inline void WithCoupling(const Coupling& coupling, const Use& use) {
  if (coupling.channels == 2 && coupling.bits == 4) return use(CouplingOf<2, 4>());
  if (coupling.channels == 2) return use(CouplingOf<2, 8>());
  if (coupling.channels == 4) return use(CouplingOf<4, 8>());
  if (coupling.bits == 8) return use(CouplingOf<8, 8>());
  return use(CouplingOf<8, 10>());
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
