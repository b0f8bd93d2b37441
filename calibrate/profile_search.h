#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrate/kl_meter.h"
#include "calibrate/knapsack.h"
#include "calibrate/nsga2.h"
#include "calibrate/pareto.h"
#include "kvcodec/codec.h"
#include "kvcodec/plan.h"

namespace kvferry::calibrate {

using Pair = codec::LayerOverride;  // K bits, V bits

// {8, 4, 2} for keys and for values.
std::vector<Pair> AllPairs();

// The codec whose layers have these bits, one pair for each layer.
absl::StatusOr<codec::Codec> CodecOf(const codec::Codec& base, std::span<const Pair> layers);
// The same with one layer lowered, all others in 16 bits.
absl::StatusOr<codec::Codec> CodecOfOne(const codec::Codec& base, int layers, int layer, Pair pair);

struct SearchInput {
  codec::Codec base;  // a kivi codec: its groups and window
  codec::CacheGeometry geometry;
  std::vector<Pair> pairs;                         // that a layer can have
  std::vector<std::vector<double>> output_errors;  // [layer][pair], of attention (LayerErrors)
  double budget_bits = 0;                          // per value of a block, scales and mins counted
  double cluster_eps = 0.05;                       // of DBSCAN on output errors
  int cluster_samples = 2;
  Nsga2Options nsga2;
  int repair_rounds = 4;
  int repair_width = 16;  // neighbours that a round measures
};

// Bits for all layers, measured together.
struct Found {
  std::vector<Pair> layers;
  Point point;  // bits per value, mean KL in nats
};

struct SearchResult {
  std::vector<std::vector<double>> alone;    // [layer][pair]: KL with that layer alone lowered
  std::vector<std::vector<int>> candidates;  // by layer: pairs that are left after Pareto pruning
  std::vector<std::vector<int>> groups;      // of layers that NSGA-II gives one pair
  std::vector<Found> uniform;                // every pair in all layers
  std::vector<Found> knapsack;               // the exact optima of the summed `alone`, by budget
  std::vector<Found> nsga2;                  // its front
  Found knapsack_best;        // the knapsack's optimum for the budget, as it was measured
  Found repaired;             // after the repair pass
  Found nsga2_best;           // NSGA-II's best within the budget; no layers: it has none there
  int nsga2_measured = 0;     // choices that NSGA-II had measured
  int knapsack_measured = 0;  // that the knapsack had: layers alone, its front and the repair pass
  double knapsack_volume = 0, nsga2_volume = 0;  // of the two fronts, in bits * nats
  Found best;
};

// What runs, for people.
using Stage = std::function<void(std::string_view what)>;

// KVTuner (arXiv 2502.04420) with the divergence from the exact model as what is lost: pairs of a
// layer pruned to the Pareto front of size and output error, layers grouped, NSGA-II over the
// groups; and beside it the exact knapsack over the divergences of single layers, whose optimum is
// then repaired by measuring its neighbours. kInvalidArgument: the budget is below the cheapest.
absl::StatusOr<SearchResult> SearchProfile(const SearchInput& input, KlMeter& meter,
                                           const Stage& stage);

}  // namespace kvferry::calibrate
