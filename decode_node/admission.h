#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvcodec/codec.h"

namespace kvferry::decode {

// What never changes while the worker runs.
struct AdmissionLimits {
  codec::WindowSpec window;
  std::uint32_t max_context_tokens = 0;
  std::uint32_t rows = 0;  // of the pool
  std::uint32_t max_sequences = 0;
  std::uint32_t credits_per_transfer = 0;
};

struct Demand {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t max_new_tokens = 0;
};

// One sequence that has rows now.
struct HeldSequence {
  std::uint32_t rows = 0;
  int remaining_tokens = 0;  // at most, until it gives them back
};

struct Usage {
  std::uint32_t free_rows = 0;
  std::uint32_t free_credits = 0;  // landing slots that no transfer was promised
  std::span<const HeldSequence> held;
  absl::Duration step_time;  // of the engine, for one token of every sequence
};

struct Admission {
  absl::Status status;
  absl::Duration retry_after;  // with kResourceExhausted
  std::uint32_t rows = 0;
  std::uint32_t credits = 0;
};

inline constexpr std::uint32_t kMinCredits = 2;  // one chunk lands while the other is checked

// Decides on one reservation. Pure.
// kInvalidArgument: a demand that can never be met; names the field and the limit.
// kResourceExhausted: not now; `retry_after` estimates when enough will have come back.
Admission Admit(const AdmissionLimits& limits, const Demand& demand, const Usage& usage);

}  // namespace kvferry::decode
