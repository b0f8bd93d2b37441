#pragma once

#include <cstddef>
#include <cstdint>

// The bytes of a compressed block: docs/format.md as code. Plain constexpr functions of integers,
// so that device code can use them too. All words and scales are little-endian.
namespace kvferry::codec::format {

inline constexpr int kTokens = 64;  // of a block
inline constexpr int kTiles = 4;    // of 16 tokens
inline constexpr int kLanes = 32;   // of one mma.sync.m16n8k16
inline constexpr int kSlots = 4;    // words that one lane finds in 16 bytes
inline constexpr int kPlaneWords = kLanes * kSlots;
inline constexpr int kPlaneBytes = kPlaneWords * 4;
inline constexpr int kAlignBytes = 128;

constexpr bool IsHeadDim(int d) { return d == 64 || d == 96 || d == 128 || d == 256; }
constexpr bool IsBits(int b) { return b == 1 || b == 2 || b == 3 || b == 4 || b == 8; }

// One side (K or V) of a block: 64 * head_dim codes.
constexpr int CodeBytes(int bits, int head_dim) { return kTokens * head_dim * bits / 8; }

// Byte offsets in a KVB block of kind kScalar.
struct ScalarLayout {
  int k_codes, k_scale, k_min, v_codes, v_scale, v_min, bytes;
};
constexpr ScalarLayout ScalarBlock(int head_dim, int k_bits, int v_bits, int k_group_tokens,
                                   int v_group_channels) {
  const int k_row_bytes = kTokens / k_group_tokens * head_dim * 2;
  const int v_row_bytes = kTokens * (head_dim / v_group_channels) * 2;
  ScalarLayout at{};
  at.k_codes = 0;
  at.k_scale = at.k_codes + CodeBytes(k_bits, head_dim);
  at.k_min = at.k_scale + k_row_bytes;
  at.v_codes = at.k_min + k_row_bytes;
  at.v_scale = at.v_codes + CodeBytes(v_bits, head_dim);
  at.v_min = at.v_scale + v_row_bytes;
  at.bytes = at.v_min + v_row_bytes;
  return at;
}

// kRaw16: K [token][channel], then V, 16 bits each.
struct Raw16Layout {
  int k, v, bytes;
};
constexpr Raw16Layout Raw16Block(int head_dim) {
  return {0, kTokens * head_dim * 2, 2 * kTokens * head_dim * 2};
}

// Kinds with one fp16 scale per token for K and for V.
struct TokenScaleLayout {
  int k_codes, v_codes, k_scale, v_scale, bytes;
};

// kInt8: K codes [token][channel], V codes, K scales [token], V scales.
using Int8Layout = TokenScaleLayout;
constexpr Int8Layout Int8Block(int head_dim) {
  const int side = kTokens * head_dim;
  return {0, side, 2 * side, 2 * side + 2 * kTokens, 2 * side + 4 * kTokens};
}

// kFp8: the same, with E4M3 numbers for codes.
constexpr TokenScaleLayout Fp8Block(int head_dim) { return Int8Block(head_dim); }

// kLut: K codes placed as those of KVB, K scales by KScalePosition, K zeros [channel] if keys are
// shifted, V codes, V scales by VScalePosition. At head_dim 96 64 bytes of 0 follow the K zeros.
struct LutLayout {
  int k_codes, k_scale, k_zero, v_codes, v_scale, bytes;
};
constexpr LutLayout LutBlock(int head_dim, int bits, bool shifted_keys) {
  const int side = CodeBytes(bits, head_dim), scales = 2 * kTokens;
  const int zeros = (2 * head_dim + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
  LutLayout at{};
  at.k_codes = 0;
  at.k_scale = at.k_codes + side;
  at.k_zero = at.k_scale + scales;
  at.v_codes = at.k_zero + (shifted_keys ? zeros : 0);
  at.v_scale = at.v_codes + side;
  at.bytes = at.v_scale + scales;
  return at;
}

// kCoupled: K codes [token][group], V codes: a token's are its groups' in a row of bits, from the
// least significant on, and a row is whole bytes.
struct CoupledLayout {
  int row_bytes, k_codes, v_codes, bytes;
};
constexpr CoupledLayout CoupledBlock(int head_dim, int channels, int bits) {
  const int row = head_dim / channels * bits / 8, side = kTokens * row;
  return {row, 0, side, 2 * side};
}

// Where a code lives in its region, in 32-bit words. Bit i of the code is bit `shift + i` of
// `word`; with spread != 0 (one code in sixteen at 3 bits) it is bit `shift` of word `word + i *
// spread`.
struct CodePlace {
  int word = 0;
  int shift = 0;
  int spread = 0;
};

namespace internal {

constexpr int Gcd4(int n) { return n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }

// The coordinates of one code in the fragments of mma.sync (K is the A operand, V its transpose):
// tile, lane (g = lane / 4), group w of 32 channels, field f of 4, half h of a word, byte r of a
// half.
struct Cell {
  int tile, g, j, w, f, h, r;
};
constexpr Cell KCell(int token, int channel) {
  return {token / 16,      token % 8,   channel / 8 % 4, channel / 32,
          channel / 2 % 4, channel % 2, token / 8 % 2};
}
constexpr Cell VCell(int token, int channel) {
  return {token / 16,  channel / 4 % 8, token / 2 % 4, channel / 32,
          channel % 4, token % 2,       token / 8 % 2};
}

// The word of (tile, lane) with index n of the `words` that this lane has per tile.
constexpr int KWord(int n, int lane, int tile) { return n * kPlaneWords + lane * kSlots + tile; }
constexpr int VWord(int words, int n, int lane, int tile) {
  const int u = Gcd4(words);  // a 16-byte slot group holds u words of 4 / u tiles
  const int plane = tile / (kSlots / u) * (words / u) + n / u;
  return plane * kPlaneWords + lane * kSlots + tile % (kSlots / u) * u + n % u;
}

// Bits 1 and 3 put two groups of 32 channels into one word or triple of words. An odd last group
// (head_dim 96) shares with the neighbour lane in g instead, in half a plane at the end.
struct Shared {
  int word;  // of the first stream
  int s;     // which half of the fields
};
constexpr Shared SharedWord(bool is_k, int head_dim, const Cell& at) {
  const int words = head_dim / 64, n = at.w / 2;
  if (n == words) {
    return {words * kPlaneWords + (at.g / 2 * 4 + at.j) * kSlots + at.tile, at.g % 2};
  }
  const int lane = at.g * 4 + at.j;
  return {is_k ? KWord(n, lane, at.tile) : VWord(words, n, lane, at.tile), at.w % 2};
}

constexpr CodePlace Place(bool is_k, int bits, int head_dim, const Cell& at) {
  if (bits == 1 || bits == 3) {
    const Shared shared = SharedWord(is_k, head_dim, at);
    const int p = 4 * shared.s + at.f;
    if (bits == 1) return {shared.word, 16 * at.h + 8 * at.r + p, 0};
    const int stream = 2 * head_dim;  // words of one of the three streams
    if (p < 6) return {shared.word + p / 2 * stream, 16 * at.h + 9 * at.r + 3 * (p % 2), 0};
    if (p == 6) return {shared.word + at.r * stream, 16 * at.h + 6, 0};
    if (at.r == 0) return {shared.word + 2 * stream, 16 * at.h + 6, 0};
    return {shared.word, 16 * at.h + 15, stream};
  }
  const int fields = 8 / bits;  // per byte
  const int pair = 4 * at.w + at.f;
  const int n = pair / fields, lane = at.g * 4 + at.j;
  const int shift = 16 * at.h + 8 * at.r + bits * (pair % fields);
  const int words = head_dim * bits / 64;
  return {is_k ? KWord(n, lane, at.tile) : VWord(words, n, lane, at.tile), shift, 0};
}

}  // namespace internal

constexpr CodePlace KPlace(int bits, int head_dim, int token, int channel) {
  return internal::Place(true, bits, head_dim, internal::KCell(token, channel));
}
constexpr CodePlace VPlace(int bits, int head_dim, int token, int channel) {
  return internal::Place(false, bits, head_dim, internal::VCell(token, channel));
}

// Index of a K scale or min: natural channel order, one row per GK tokens.
constexpr int KScaleIndex(int head_dim, int k_group_tokens, int token, int channel) {
  return token / k_group_tokens * head_dim + channel;
}
// Position of a token's K scale inside its 64, where it has one of its own: a lane of mma.sync
// finds those of its rows g and g + 8 in all tiles side by side.
constexpr int KScalePosition(int token) { return token % 8 * 8 + token / 8 % 2 * 4 + token / 16; }
// Position of a token's V scale inside its 64: the lanes j = 0..3 of mma.sync find their own in a
// row.
constexpr int VScalePosition(int token) {
  const int mt = token / 16, r1 = token / 8 % 2, j = token % 8 / 2, h = token % 2;
  return j * 16 + mt / 2 * 8 + r1 * 4 + mt % 2 * 2 + h;
}
constexpr int VScaleIndex(int v_group_channels, int token, int channel) {
  return channel / v_group_channels * kTokens + VScalePosition(token);
}

// The sizes that docs/format.md prints.
static_assert(ScalarBlock(128, 1, 1, 64, 128).bytes == 2816);
static_assert(ScalarBlock(128, 2, 2, 64, 128).bytes == 4864);
static_assert(ScalarBlock(128, 3, 3, 64, 128).bytes == 6912);
static_assert(ScalarBlock(128, 4, 4, 64, 128).bytes == 8960);
static_assert(ScalarBlock(128, 4, 2, 64, 128).bytes == 6912);
static_assert(ScalarBlock(128, 2, 2, 32, 32).bytes == 6144);
static_assert(ScalarBlock(64, 4, 4, 64, 64).bytes == 4608);
static_assert(ScalarBlock(96, 1, 1, 64, 32).bytes % kAlignBytes == 0);
static_assert(Raw16Block(128).bytes == 32768);
static_assert(Fp8Block(128).bytes == 16640 && Fp8Block(96).v_scale == 2 * 64 * 96 + 128);
static_assert(LutBlock(128, 4, false).bytes == 8448 && LutBlock(64, 4, false).bytes == 4352);
static_assert(LutBlock(128, 3, false).bytes == 6400 && LutBlock(128, 2, false).bytes == 4352);
static_assert(LutBlock(96, 3, false).bytes == 4864 && LutBlock(96, 3, false).v_codes == 2304 + 128);
static_assert(LutBlock(128, 4, true).bytes == 8704 && LutBlock(64, 4, true).bytes == 4480);
static_assert(LutBlock(96, 4, true).bytes == 6656 && LutBlock(256, 4, true).bytes == 17152);
static_assert(Int8Block(128).bytes == 16640 && Int8Block(96).bytes % kAlignBytes == 0);
static_assert(CoupledBlock(128, 2, 8).bytes == 8192 && CoupledBlock(64, 8, 10).bytes == 1280);
static_assert(CoupledBlock(96, 8, 10).row_bytes == 15 && CoupledBlock(96, 8, 10).bytes == 15 * 128);
// The register order of the kernels at head_dim 128: K [word][lane][tile], V [tile][lane][word].
static_assert(KPlace(2, 128, 16 + 3 + 8, 32 + 8 + 5).word == 128 + (3 * 4 + 1) * 4 + 1 &&
              KPlace(2, 128, 16 + 3 + 8, 32 + 8 + 5).shift == 16 + 8 + 4);
static_assert(VPlace(2, 128, 32 + 5, 96 + 8 + 3).word == 2 * 128 + (2 * 4 + 2) * 4 + 3 &&
              VPlace(2, 128, 32 + 5, 96 + 8 + 3).shift == 16 + 6);
static_assert(VPlace(4, 128, 32 + 5, 96 + 8 + 3).word == (2 * 2 + 1) * 128 + (2 * 4 + 2) * 4 + 3);

}  // namespace kvferry::codec::format
