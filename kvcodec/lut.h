#pragma once

#include <array>
#include <cstdint>

// The tables of lut blocks: a code stands for a level, a value is the token's scale times a level,
// and of shifted keys the zero point of their channel more.
// Frozen in docs/format.md. Plain constexpr data, so that device code can use it too.
namespace kvferry::codec {

// The value goes into the codec's hash.
enum class LutTable : std::uint8_t {
  kNf4 = 1,   // quantiles of the normal distribution (QLoRA; NQKV, arXiv 2505.16210)
  kNf3 = 2,   // the same rule for 8 levels
  kLm3 = 3,   // least squared error for the normal distribution (Lloyd-Max), 8 levels
  kLm2 = 4,   // and 4
  kAnf4 = 5,  // kNf4 with shifted keys ("asymmetric")
};

// What a token's scale is made from.
enum class LutScale : std::uint8_t {
  kLargest,  // the largest magnitude of the token: levels end at -1 and 1
  kRms,      // its root mean square: levels are those of variance 1
};

struct Lut {
  LutTable table;
  const char* name;
  int bits;
  LutScale scale;
  std::array<float, 16> levels;  // ascending, the first 2^bits; each is exact in fp16
  bool shifted_keys = false;     // a key has the zero point of its channel and block taken off

  constexpr int count() const { return 1 << bits; }
  // A code is the number of middles below value / scale: the nearest level, of two the lower.
  constexpr float middle(int i) const { return (levels[i] + levels[i + 1]) * 0.5f; }
};

inline constexpr std::array<float, 16> kNf4Levels = {-1.0f,
                                                     -0.6962890625f,
                                                     -0.52490234375f,
                                                     -0.39501953125f,
                                                     -0.284423828125f,
                                                     -0.184814453125f,
                                                     -0.091064453125f,
                                                     0.0f,
                                                     0.07958984375f,
                                                     0.160888671875f,
                                                     0.24609375f,
                                                     0.337890625f,
                                                     0.440673828125f,
                                                     0.5625f,
                                                     0.72314453125f,
                                                     1.0f};

inline constexpr std::array kLuts = {
    Lut{LutTable::kNf4, "nf4", 4, LutScale::kLargest, kNf4Levels},
    Lut{LutTable::kNf3,
        "nf3",
        3,
        LutScale::kLargest,
        {-1.0f, -0.53515625f, -0.2469482421875f, 0.0f, 0.183349609375f, 0.382080078125f,
         0.623046875f, 1.0f}},
    Lut{LutTable::kLm3,
        "lm3",
        3,
        LutScale::kRms,
        {-2.15234375f, -1.34375f, -0.755859375f, -0.2451171875f, 0.2451171875f, 0.755859375f,
         1.34375f, 2.15234375f}},
    Lut{LutTable::kLm2,
        "lm2",
        2,
        LutScale::kRms,
        {-1.5107421875f, -0.452880859375f, 0.452880859375f, 1.5107421875f}},
    Lut{LutTable::kAnf4, "anf4", 4, LutScale::kLargest, kNf4Levels, /*shifted_keys=*/true},
};

// Null: there is no such table.
constexpr const Lut* FindLut(LutTable table) {
  for (const Lut& lut : kLuts) {
    if (lut.table == table) return &lut;
  }
  return nullptr;
}

}  // namespace kvferry::codec
