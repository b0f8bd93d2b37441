#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "model/sampler.h"

// What a front hands to the serving core and gets back. No front's messages in here.
namespace kvferry::router {

// A checked request.
struct GenerateSpec {
  std::string request_id;  // not empty
  std::string codec;       // canonical; empty: the decode worker's own
  std::vector<std::int32_t> prompt;
  model::SamplingParams sampling;         // with a seed
  std::uint32_t max_new_tokens = 0;       // >= 1
  std::vector<std::int32_t> stop_tokens;  // end tokens among them
  std::vector<std::string> stop;
  MonoTime deadline = absl::InfiniteDuration();
};

// What one hand-off moved, as the workers report it; not adopted: until the first token.
struct Handoff {
  bool adopted = false;
  std::uint32_t prompt_tokens = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t header_bytes = 0;
  std::uint64_t raw16_bytes = 0;
  std::uint32_t chunks = 0;
  std::uint32_t resent_chunks = 0;
  std::string transport;
  absl::Duration prefill_time;
  absl::Duration exposed_time;
};

enum class FinishReason { kStop, kLength, kCancelled };

struct AnswerStart {
  std::string codec;
  std::uint32_t prompt_tokens = 0;
  std::uint64_t seed = 0;
};

struct AnswerToken {
  std::uint32_t index = 0;  // among the generated
  std::int32_t id = 0;
  std::string text;  // what became complete with it
};

struct AnswerEnd {
  FinishReason reason = FinishReason::kStop;
  std::string text;  // held back until now
  std::uint32_t prompt_tokens = 0;
  std::uint32_t completion_tokens = 0;
  absl::Duration time_to_first_token;
  absl::Duration time_per_token;  // mean over the tokens after the first
  Handoff handoff;                // of the last attempt
  std::uint32_t attempts = 0;
  std::string prefill_worker;
  std::string decode_worker;
};

// Hears one request: OnStart, OnToken..., then OnEnd or OnError, which is the last. Thread: the
// engine's loop; must not block.
class AnswerObserver {
 public:
  virtual ~AnswerObserver() = default;
  virtual void OnStart(const AnswerStart& start) = 0;
  virtual void OnToken(AnswerToken token) = 0;
  virtual void OnEnd(const AnswerEnd& end) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

}  // namespace kvferry::router
