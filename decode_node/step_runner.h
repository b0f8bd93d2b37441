#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "decode_node/cache_store.h"

namespace kvferry::decode {

// One token of each sequence of a batch. No window is full.
struct StepBatch {
  std::span<const std::int32_t> tokens;     // to append, by sequence
  std::span<const std::int32_t> positions;  // of these
  std::span<StoredSequence*> sequences;     // null: cancelled in the middle of the step
  // Gives back the caches of those that were cancelled meanwhile, and makes them null above. To be
  // called where nothing reads or writes them.
  std::function<void()> drop_cancelled;
};

// Runs the model over a batch: appends K and V of its tokens to the caches and attends on these.
// The one place of a step that knows where caches lie. Thread: the engine's.
class StepRunner {
 public:
  virtual ~StepRunner() = default;

  virtual int vocabulary() const = 0;
  // Nothing reads or writes the caches any more when it returns, also after an error; they are of
  // no use then. kCancelled: every sequence was.
  // The answer: logits, [sequences, vocabulary], valid until the next call; those of a null
  // sequence mean nothing.
  virtual absl::StatusOr<std::span<const float>> Step(const StepBatch& batch) = 0;
};

}  // namespace kvferry::decode
