#include "calibrate/knapsack.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvferry::calibrate {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

std::int64_t CostOf(std::span<const std::vector<Option>> layers, const Choice& choice) {
  std::int64_t cost = 0;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    cost += layers[layer][choice[layer]].cost;
  }
  return cost;
}

double LossOf(std::span<const std::vector<Option>> layers, const Choice& choice) {
  double loss = 0;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    loss += layers[layer][choice[layer]].loss;
  }
  return loss;
}

absl::StatusOr<Choice> SolveKnapsack(std::span<const std::vector<Option>> layers,
                                     std::int64_t budget) {
  std::int64_t unit = 0, cheapest = 0;
  for (const std::vector<Option>& options : layers) {
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (const Option& option : options) {
      unit = std::gcd(unit, option.cost);
      least = std::min(least, option.cost);
    }
    cheapest += least;
  }
  if (cheapest > budget) {
    return absl::InvalidArgumentError(absl::StrCat("a budget of ", budget,
                                                   " bytes for a block of all layers: the "
                                                   "cheapest choice takes ",
                                                   cheapest));
  }
  const auto units = static_cast<std::size_t>(budget / unit);
  // best[u]: the least loss of the layers so far within u units; taken[layer][u]: the option that
  // it takes in that layer.
  std::vector<double> best(units + 1, 0);
  std::vector<std::vector<int>> taken(layers.size(), std::vector<int>(units + 1, -1));
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    std::vector<double> next(units + 1, kNever);
    for (std::size_t u = 0; u <= units; ++u) {
      for (std::size_t i = 0; i < layers[layer].size(); ++i) {
        const auto cost = static_cast<std::size_t>(layers[layer][i].cost / unit);
        if (cost > u || best[u - cost] + layers[layer][i].loss >= next[u]) continue;
        next[u] = best[u - cost] + layers[layer][i].loss;
        taken[layer][u] = static_cast<int>(i);
      }
    }
    best = std::move(next);
  }
  Choice choice(layers.size());
  std::size_t left = units;
  for (std::size_t layer = layers.size(); layer-- > 0;) {
    choice[layer] = taken[layer][left];
    left -= static_cast<std::size_t>(layers[layer][choice[layer]].cost / unit);
  }
  return choice;
}

std::vector<Choice> Neighbours(std::span<const std::vector<Option>> layers, const Choice& choice,
                               std::int64_t budget, int count) {
  struct Change {
    std::size_t layer;
    int option;
    std::int64_t cost;
    double loss;
  };
  std::vector<Change> changes;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const Option& was = layers[layer][choice[layer]];
    for (int i = 0; i < static_cast<int>(layers[layer].size()); ++i) {
      if (i == choice[layer]) continue;
      const Option& is = layers[layer][i];
      changes.push_back({layer, i, is.cost - was.cost, is.loss - was.loss});
    }
  }
  const std::int64_t room = budget - CostOf(layers, choice);
  std::vector<std::pair<double, Choice>> found;
  for (std::size_t a = 0; a < changes.size(); ++a) {
    Choice one = choice;
    one[changes[a].layer] = changes[a].option;
    if (changes[a].cost <= room) found.emplace_back(changes[a].loss, one);
    for (std::size_t b = a + 1; b < changes.size(); ++b) {
      if (changes[b].layer == changes[a].layer || changes[a].cost + changes[b].cost > room) {
        continue;
      }
      Choice two = one;
      two[changes[b].layer] = changes[b].option;
      found.emplace_back(changes[a].loss + changes[b].loss, std::move(two));
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Choice> nearest;
  for (auto& [loss, neighbour] : found) {
    if (static_cast<int>(nearest.size()) == count) break;
    nearest.push_back(std::move(neighbour));
  }
  return nearest;
}

}  // namespace kvferry::calibrate
