#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::calibrate {

// A way to store one layer.
struct Option {
  std::int64_t cost = 0;  // bytes of a block
  double loss = 0;        // with this layer alone stored so
};

// One option for each layer: indices into the layer's options.
using Choice = std::vector<int>;

// Sums over layers.
std::int64_t CostOf(std::span<const std::vector<Option>> layers, const Choice& choice);
double LossOf(std::span<const std::vector<Option>> layers, const Choice& choice);

// The choice of least summed loss whose summed cost is at most `budget`: exact, by dynamic
// programming over the budget in units of the costs' greatest common divisor.
// kInvalidArgument: the cheapest choice costs more than that.
absl::StatusOr<Choice> SolveKnapsack(std::span<const std::vector<Option>> layers,
                                     std::int64_t budget);

// Choices within the budget that differ from `choice` in one layer or in two, `count` of them at
// most: those of least summed loss, least first.
std::vector<Choice> Neighbours(std::span<const std::vector<Option>> layers, const Choice& choice,
                               std::int64_t budget, int count);

}  // namespace kvferry::calibrate
