#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrate/pareto.h"

namespace kvferry::calibrate {

// One value per gene.
using Genes = std::vector<int>;

struct Nsga2Options {
  int population = 16;  // a multiple of 4, at least 8
  int generations = 8;
  std::uint32_t seed = 1;
};

struct Individual {
  Genes genes;
  Point point;
};

// Cost and loss of each: called with those of a generation that were not asked for before.
using Evaluate = std::function<absl::StatusOr<std::vector<Point>>(std::span<const Genes>)>;

// Searches genes, gene i of [0, sizes[i]), for little cost and little loss with NSGA-II (Deb et
// al., IEEE TEC 6(2), 2002; pagmo2's). All that it has evaluated, in that order, each once; the
// same seed gives the same. A failure of `evaluate` ends it with that status. kInvalidArgument:
// population.
absl::StatusOr<std::vector<Individual>> RunNsga2(std::span<const int> sizes,
                                                 const Nsga2Options& options,
                                                 const Evaluate& evaluate);

}  // namespace kvferry::calibrate
