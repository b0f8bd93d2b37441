#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::testing {

// What the workers of a test serve.
struct ServedModel {
  std::string path;  // of random weights: the config.json of their shape
  bool random_weights = false;
};
// A small shape: a worker is ready, and a prompt done, within a second.
ServedModel SmallRandomModel();
// The demo model where it is installed, else the small one.
ServedModel ChooseServedModel();

// Different prompts of about 600 tokens: of the demo model text that repeats itself, with which it
// goes on and is sure of most tokens; else random ids below `vocabulary`.
absl::StatusOr<std::vector<std::vector<std::int32_t>>> LongPrompts(const ServedModel& model,
                                                                   int vocabulary, int count);

}  // namespace kvferry::testing
