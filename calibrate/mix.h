#pragma once

#include <cstdint>

// Random numbers that depend on where they are for alone, not on how many were drawn before.
namespace kvferry::calibrate {

// The number `index` of the stream `seed`, and the seed of a stream below it (SplitMix64's output,
// twice).
inline std::uint64_t Mix(std::uint64_t seed, std::uint64_t index) {
  const auto once = [](std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return once(once(seed) ^ index);
}

// In [0, 1).
inline double Uniform(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace kvferry::calibrate
