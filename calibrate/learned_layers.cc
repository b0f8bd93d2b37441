#include "calibrate/learned_layers.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "common/status_macros.h"

namespace kvferry::calibrate {
namespace {

nlohmann::json ToJson(const SideErrors& errors) {
  const auto sums = [](const SquareSums& of) {
    return nlohmann::json::array({of.difference, of.exact});
  };
  return {{"weighted", sums(errors.weighted)}, {"unweighted", sums(errors.plain)}};
}

// Throws nlohmann::json::exception.
SideErrors SideErrorsFrom(const nlohmann::json& json) {
  const auto sums = [](const nlohmann::json& pair) {
    return SquareSums{.difference = pair.at(0).get<double>(), .exact = pair.at(1).get<double>()};
  };
  return {.weighted = sums(json.at("weighted")), .plain = sums(json.at("unweighted"))};
}

nlohmann::json ToJson(int layer, const LayerCodebooks& books) {
  const absl::string_view bytes(reinterpret_cast<const char*>(books.centroids.data()),
                                books.centroids.size() * sizeof(std::uint16_t));
  return {{"layer", layer},
          {"k", ToJson(books.k)},
          {"v", ToJson(books.v)},
          {"centroids", absl::Base64Escape(bytes)}};
}

// values: of one layer.
absl::StatusOr<std::pair<int, LayerCodebooks>> FromJson(const nlohmann::json& json, int layers,
                                                        std::size_t values) {
  try {
    const std::int64_t layer = json.at("layer").get<std::int64_t>();
    if (layer < 0 || layer >= layers) return absl::DataLossError("no layer of this model");
    LayerCodebooks books{.k = SideErrorsFrom(json.at("k")), .v = SideErrorsFrom(json.at("v"))};
    std::string bytes;
    if (!absl::Base64Unescape(json.at("centroids").get<std::string>(), &bytes) ||
        bytes.size() != values * sizeof(std::uint16_t)) {
      return absl::DataLossError("no base64, or of another number of centroids");
    }
    books.centroids.resize(values);
    std::memcpy(books.centroids.data(), bytes.data(), bytes.size());
    return std::pair(static_cast<int>(layer), std::move(books));
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(error.what());
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LearnedLayers>> LearnedLayers::Open(
    const std::string& path, const nlohmann::json& run, const codec::CodebookShape& shape) {
  KVF_ASSIGN_OR_RETURN(auto file, bench::JsonLines::Open(path, run));
  std::unique_ptr<LearnedLayers> learned(new LearnedLayers(std::move(file), shape.layers));
  const std::vector<nlohmann::json>& lines = learned->file_->lines();
  for (std::size_t i = 0; i < lines.size(); ++i) {
    auto line = FromJson(lines[i], shape.layers, shape.values() / shape.layers);
    if (!line.ok()) return learned->file_->Damaged(i, line.status());
    learned->layers_[line->first] = std::move(line->second);
  }
  return learned;
}

int LearnedLayers::count() const {
  return static_cast<int>(std::count_if(layers_.begin(), layers_.end(),
                                        [](const auto& layer) { return layer.has_value(); }));
}

absl::Status LearnedLayers::Put(int layer, LayerCodebooks books) {
  KVF_RETURN_IF_ERROR(file_->Append(ToJson(layer, books)));
  layers_[layer] = std::move(books);
  return absl::OkStatus();
}

}  // namespace kvferry::calibrate
