#include "calibrate/profile_search.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "calibrate/clusters.h"
#include "common/status_macros.h"

namespace kvferry::calibrate {
namespace {

// Budgets at which the knapsack's front is measured, from the cheapest choice to the dearest.
constexpr int kFrontBudgets = 9;

class Search {
 public:
  Search(const SearchInput& input, KlMeter& meter, const Stage& stage)
      : input_(input), meter_(meter), stage_(stage) {}

  absl::StatusOr<SearchResult> Run() {
    KVF_RETURN_IF_ERROR(PriceOptions());
    KVF_RETURN_IF_ERROR(SolveKnapsack(options_, budget_).status());  // before all the work
    KVF_RETURN_IF_ERROR(MeasureAlone());
    KVF_RETURN_IF_ERROR(MeasureUniform());
    KVF_RETURN_IF_ERROR(RunKnapsack());
    KVF_RETURN_IF_ERROR(Repair());
    Prune();
    KVF_RETURN_IF_ERROR(RunGenetic());
    Conclude();
    return std::move(result_);
  }

 private:
  int layers() const { return input_.geometry.layers; }

  double BitsOf(std::int64_t bytes) const {
    return 8.0 * static_cast<double>(bytes) /
           (2.0 * codec::kBlockTokens * input_.geometry.head_dim * layers());
  }

  absl::Status PriceOptions() {
    options_.resize(layers());
    for (int layer = 0; layer < layers(); ++layer) {
      for (const Pair& pair : input_.pairs) {
        codec::Codec codec = input_.base;
        codec.layers[layer] = pair;
        KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec,
                             codec.ForLayer(layer, input_.geometry.head_dim));
        options_[layer].push_back({static_cast<std::int64_t>(codec::BlockBytes(spec)), 0});
      }
    }
    // Half a byte for the rounding of the product.
    budget_ = static_cast<std::int64_t>(input_.budget_bits * 2 * codec::kBlockTokens *
                                            input_.geometry.head_dim * layers() / 8 +
                                        0.5);
    return absl::OkStatus();
  }

  absl::Status MeasureAlone() {
    stage_("each layer alone");
    std::vector<codec::Codec> codecs;
    for (int layer = 0; layer < layers(); ++layer) {
      for (const Pair& pair : input_.pairs) {
        KVF_ASSIGN_OR_RETURN(codecs.emplace_back(), CodecOfOne(input_.base, layers(), layer, pair));
      }
    }
    KVF_ASSIGN_OR_RETURN(const std::vector<double> losses, meter_.Measure(codecs));
    for (int layer = 0; layer < layers(); ++layer) {
      std::vector<double>& alone = result_.alone.emplace_back();
      for (std::size_t i = 0; i < input_.pairs.size(); ++i) {
        alone.push_back(losses[layer * input_.pairs.size() + i]);
        options_[layer][i].loss = alone.back();
      }
    }
    result_.knapsack_measured += static_cast<int>(codecs.size());
    return absl::OkStatus();
  }

  // Measures choices together, all layers lowered.
  absl::StatusOr<std::vector<Found>> MeasureChoices(std::span<const Choice> choices) {
    std::vector<Found> found;
    std::vector<codec::Codec> codecs;
    for (const Choice& choice : choices) {
      Found& one = found.emplace_back();
      for (const int pair : choice) one.layers.push_back(input_.pairs[pair]);
      one.point.cost = BitsOf(CostOf(options_, choice));
      KVF_ASSIGN_OR_RETURN(codecs.emplace_back(), CodecOf(input_.base, one.layers));
    }
    KVF_ASSIGN_OR_RETURN(const std::vector<double> losses, meter_.Measure(codecs));
    for (std::size_t i = 0; i < found.size(); ++i) found[i].point.loss = losses[i];
    return found;
  }

  absl::Status MeasureUniform() {
    stage_("uniform codecs");
    std::vector<Choice> choices;
    for (int pair = 0; pair < static_cast<int>(input_.pairs.size()); ++pair) {
      choices.emplace_back(layers(), pair);
    }
    KVF_ASSIGN_OR_RETURN(result_.uniform, MeasureChoices(choices));
    return absl::OkStatus();
  }

  absl::Status RunKnapsack() {
    stage_("knapsack");
    std::int64_t least = 0, most = 0;
    for (const std::vector<Option>& options : options_) {
      const auto [low, high] =
          std::minmax_element(options.begin(), options.end(),
                              [](const Option& a, const Option& b) { return a.cost < b.cost; });
      least += low->cost;
      most += high->cost;
    }
    std::vector<Choice> choices;
    for (int i = 0; i < kFrontBudgets; ++i) {
      KVF_ASSIGN_OR_RETURN(
          choices.emplace_back(),
          SolveKnapsack(options_, least + (most - least) * i / (kFrontBudgets - 1)));
    }
    KVF_ASSIGN_OR_RETURN(best_, SolveKnapsack(options_, budget_));
    choices.push_back(best_);
    KVF_ASSIGN_OR_RETURN(result_.knapsack, MeasureChoices(choices));
    result_.knapsack_measured += static_cast<int>(choices.size());
    result_.knapsack_best = result_.knapsack.back();
    return absl::OkStatus();
  }

  // Summed losses only guess: the neighbours with the best guesses are measured, round by round,
  // and the best that has been measured is the one whose neighbours are next.
  absl::Status Repair() {
    result_.repaired = result_.knapsack_best;
    std::set<Choice> seen = {best_};
    for (int round = 0; round < input_.repair_rounds; ++round) {
      stage_(absl::StrCat("repair pass ", round + 1));
      std::vector<Choice> fresh;
      const int enough = input_.repair_width + static_cast<int>(seen.size());
      for (Choice& choice : Neighbours(options_, best_, budget_, enough)) {
        const bool room = static_cast<int>(fresh.size()) < input_.repair_width;
        if (room && seen.insert(choice).second) fresh.push_back(std::move(choice));
      }
      if (fresh.empty()) break;
      KVF_ASSIGN_OR_RETURN(const std::vector<Found> found, MeasureChoices(fresh));
      result_.knapsack_measured += static_cast<int>(fresh.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (found[i].point.loss >= result_.repaired.point.loss) continue;
        result_.repaired = found[i];
        best_ = fresh[i];
      }
    }
    return absl::OkStatus();
  }

  void Prune() {
    std::vector<LayerShape> shapes;
    for (int layer = 0; layer < layers(); ++layer) {
      std::vector<Point> points;
      for (std::size_t i = 0; i < input_.pairs.size(); ++i) {
        points.push_back(
            {static_cast<double>(options_[layer][i].cost), input_.output_errors[layer][i]});
      }
      result_.candidates.push_back(ParetoFront(points));
      LayerShape& shape = shapes.emplace_back();
      shape.candidates = result_.candidates.back();
      for (const int pair : shape.candidates) {
        shape.losses.push_back(input_.output_errors[layer][pair]);
      }
    }
    result_.groups = GroupLayers(shapes, input_.cluster_eps, input_.cluster_samples);
  }

  // A gene for each group: which of its candidates all its layers have.
  absl::Status RunGenetic() {
    std::vector<int> sizes;
    for (const std::vector<int>& group : result_.groups) {
      sizes.push_back(static_cast<int>(result_.candidates[group.front()].size()));
    }
    std::vector<Found> all;
    const Evaluate evaluate =
        [&](std::span<const Genes> genes) -> absl::StatusOr<std::vector<Point>> {
      stage_(absl::StrCat("NSGA-II, after ", all.size()));
      std::vector<Choice> choices;
      for (const Genes& one : genes) {
        Choice& choice = choices.emplace_back(layers());
        for (std::size_t group = 0; group < one.size(); ++group) {
          for (const int layer : result_.groups[group]) {
            choice[layer] = result_.candidates[layer][one[group]];
          }
        }
      }
      KVF_ASSIGN_OR_RETURN(const std::vector<Found> found, MeasureChoices(choices));
      all.insert(all.end(), found.begin(), found.end());
      std::vector<Point> points;
      for (const Found& one : found) points.push_back(one.point);
      return points;
    };
    KVF_RETURN_IF_ERROR(RunNsga2(sizes, input_.nsga2, evaluate).status());
    result_.nsga2_measured = static_cast<int>(all.size());
    std::vector<Point> points;
    for (const Found& one : all) points.push_back(one.point);
    for (const int i : ParetoFront(points)) result_.nsga2.push_back(all[i]);
    return absl::OkStatus();
  }

  double VolumeOf(std::span<const Found> front, const Point& worst) {
    std::vector<Point> points;
    for (const Found& found : front) points.push_back(found.point);
    return Hypervolume(points, worst);
  }

  void Conclude() {
    Point worst;
    for (const Found& found : result_.uniform) {
      worst.cost = std::max(worst.cost, found.point.cost);
      worst.loss = std::max(worst.loss, found.point.loss);
    }
    std::vector<Found> knapsack = result_.knapsack;
    knapsack.push_back(result_.repaired);
    result_.knapsack_volume = VolumeOf(knapsack, worst);
    result_.nsga2_volume = VolumeOf(result_.nsga2, worst);
    for (const Found& found : result_.nsga2) {
      if (found.point.cost <= BitsOf(budget_)) result_.nsga2_best = found;  // by falling loss
    }
    const bool genetic = !result_.nsga2_best.layers.empty() &&
                         result_.nsga2_best.point.loss < result_.repaired.point.loss;
    result_.best = genetic ? result_.nsga2_best : result_.repaired;
  }

  const SearchInput& input_;
  KlMeter& meter_;
  const Stage& stage_;
  std::vector<std::vector<Option>> options_;  // [layer][pair]
  std::int64_t budget_ = 0;                   // bytes of a block of all layers, one head
  Choice best_;
  SearchResult result_;
};

}  // namespace

std::vector<Pair> AllPairs() {
  std::vector<Pair> pairs;
  for (const int k : {8, 4, 2}) {
    for (const int v : {8, 4, 2}) pairs.push_back({k, v});
  }
  return pairs;
}

absl::StatusOr<codec::Codec> CodecOf(const codec::Codec& base, std::span<const Pair> layers) {
  std::string name = base.name;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    absl::StrAppend(&name, name.find(':') == std::string::npos ? ":" : ",", "layer.", layer, "=",
                    layers[layer].k_bits, "/", layers[layer].v_bits);
  }
  return codec::FindCodec(name);
}

absl::StatusOr<codec::Codec> CodecOfOne(const codec::Codec& base, int layers, int layer,
                                        Pair pair) {
  std::vector<Pair> all(static_cast<std::size_t>(layers), {codec::kRawBits, codec::kRawBits});
  all[layer] = pair;
  return CodecOf(base, all);
}

absl::StatusOr<SearchResult> SearchProfile(const SearchInput& input, KlMeter& meter,
                                           const Stage& stage) {
  return Search(input, meter, stage).Run();
}

}  // namespace kvferry::calibrate
