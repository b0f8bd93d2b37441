#include "calibrate/profile_record.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/output.h"
#include "common/string_view.h"
#include "kvcodec/profile.h"

namespace kvferry::calibrate {
namespace {

std::string PairText(Pair pair) { return absl::StrCat(pair.k_bits, "/", pair.v_bits); }

nlohmann::json LayersJson(std::span<const Pair> layers) {
  nlohmann::json json = nlohmann::json::array();
  for (const Pair& pair : layers) json.push_back({pair.k_bits, pair.v_bits});
  return json;
}

nlohmann::json PointJson(const Found& found) {
  return {{"bits_per_value", found.point.cost}, {"kl", found.point.loss}};
}

nlohmann::json FrontJson(std::span<const Found> front) {
  nlohmann::json json = nlohmann::json::array();
  for (const Found& found : front) json.push_back(PointJson(found));
  return json;
}

// What was measured of each layer: KL alone by pair, errors by pair.
nlohmann::json SensitivityJson(const SearchInput& input, const SearchResult& result,
                               const std::vector<std::vector<LayerErrors>>& errors) {
  const std::vector<Pair> all = AllPairs();
  nlohmann::json json = nlohmann::json::array();
  for (std::size_t layer = 0; layer < result.alone.size(); ++layer) {
    nlohmann::json one = {{"kl", nlohmann::json::object()}, {"errors", nlohmann::json::object()}};
    for (std::size_t i = 0; i < input.pairs.size(); ++i) {
      one["kl"][PairText(input.pairs[i])] = result.alone[layer][i];
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      const LayerErrors& of = errors[layer][i];
      one["errors"][PairText(all[i])] = {of.keys, of.values, of.scores, of.output};
    }
    std::vector<std::string> candidates;
    for (const int pair : result.candidates[layer]) {
      candidates.push_back(PairText(input.pairs[pair]));
    }
    one["candidates"] = candidates;
    json.push_back(std::move(one));
  }
  return json;
}

}  // namespace

nlohmann::json ProfileJson(const std::string& name, const SearchInput& input,
                           const SearchResult& result,
                           const std::vector<std::vector<LayerErrors>>& errors,
                           nlohmann::json setup) {
  nlohmann::json uniform = nlohmann::json::object();
  for (const Found& found : result.uniform) {
    uniform[PairText(found.layers.front())] = PointJson(found);
  }
  nlohmann::json search = std::move(setup);
  search["budget_bits"] = input.budget_bits;
  search["found"] = PointJson(result.best);
  search["uniform"] = uniform;
  search["knapsack"] = {{"measured", result.knapsack_measured},
                        {"volume", result.knapsack_volume},
                        {"before_repair", PointJson(result.knapsack_best)},
                        {"after_repair", PointJson(result.repaired)},
                        {"front", FrontJson(result.knapsack)}};
  search["nsga2"] = {{"measured", result.nsga2_measured},
                     {"volume", result.nsga2_volume},
                     {"population", input.nsga2.population},
                     {"generations", input.nsga2.generations},
                     {"seed", input.nsga2.seed},
                     {"groups", result.groups},
                     {"front", FrontJson(result.nsga2)}};
  if (!result.nsga2_best.layers.empty()) search["nsga2"]["best"] = PointJson(result.nsga2_best);
  search["errors_are"] = {"keys", "values", "scores", "output"};
  search["layers"] = SensitivityJson(input, result, errors);
  return {{"format", codec::kProfileFormat},
          {"version", codec::kProfileVersion},
          {"name", name},
          {"codec", input.base.name},
          {"layers", LayersJson(result.best.layers)},
          {"search", std::move(search)}};
}

std::string ProfileText(const std::string& name, const SearchResult& result) {
  std::vector<std::vector<std::string>> table = {{"", "bits/value", "KL, nats"}};
  const auto add = [&](const std::string& what, const Found& found) {
    table.push_back({what, absl::StrFormat("%.3f", found.point.cost),
                     absl::StrFormat("%.3e", found.point.loss)});
  };
  for (const Found& found : result.uniform) {
    add(absl::StrCat("all layers ", PairText(found.layers.front())), found);
  }
  add("knapsack", result.knapsack_best);
  add("knapsack, repaired", result.repaired);
  if (!result.nsga2_best.layers.empty()) add("NSGA-II", result.nsga2_best);
  add(name, result.best);
  const std::string layers = absl::StrJoin(
      result.best.layers, " ", [](std::string* out, const Pair& pair) { *out += PairText(pair); });
  return absl::StrCat(
      cli::FormatTable(table), "\nfronts: knapsack ",
      absl::StrFormat("%.4f bits * nats after %d measurements, NSGA-II %.4f after %d\n",
                      result.knapsack_volume, result.knapsack_measured, result.nsga2_volume,
                      result.nsga2_measured),
      "K/V bits by layer: ", layers, "\n");
}

}  // namespace kvferry::calibrate
