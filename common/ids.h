#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry {

// 128 random bits that name one hand-off of one sequence. Value type; hashable with absl.
struct TransferId {
  std::array<std::uint8_t, 16> bytes{};

  static TransferId Random();  // from the system's generator
  static absl::StatusOr<TransferId> FromHex(
      std::string_view hex);  // kInvalidArgument unless 32 hex digits
  static absl::StatusOr<TransferId> FromBytes(
      std::string_view raw);  // kInvalidArgument unless 16 bytes
  std::string ToHex() const;
  std::string ToBytes() const;
  auto operator<=>(const TransferId&) const = default;

  template <typename H>
  friend H AbslHashValue(H h, const TransferId& id) {
    return H::combine(std::move(h), id.bytes);
  }
};

// The attempt number of a transfer. A message with an older epoch is dropped and counted.
enum class Epoch : std::uint32_t {};

// The random id of one run of a process: a restarted worker is another peer. Never 0.
enum class Incarnation : std::uint64_t {};

// 64 random bits, never 0.
std::uint64_t RandomId64();

}  // namespace kvferry
