#include "calibrate/clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>

namespace kvferry::calibrate {
namespace {

constexpr int kUnseen = -2;

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares);
}

std::vector<int> Neighbours(std::span<const std::vector<double>> points, int of, double eps) {
  std::vector<int> all;
  for (int i = 0; i < static_cast<int>(points.size()); ++i) {
    if (Distance(points[of], points[i]) <= eps) all.push_back(i);
  }
  return all;
}

}  // namespace

std::vector<int> Dbscan(std::span<const std::vector<double>> points, double eps, int min_samples) {
  std::vector<int> labels(points.size(), kUnseen);
  int clusters = 0;
  const auto is_core = [&](const std::vector<int>& near) {
    return static_cast<int>(near.size()) >= min_samples;
  };
  for (int first = 0; first < static_cast<int>(points.size()); ++first) {
    if (labels[first] != kUnseen) continue;
    std::vector<int> open = Neighbours(points, first, eps);
    if (!is_core(open)) {
      labels[first] = kNoise;
      continue;
    }
    const int cluster = clusters++;
    labels[first] = cluster;
    while (!open.empty()) {
      const int point = open.back();
      open.pop_back();
      const bool seen = labels[point] != kUnseen;
      if (!seen || labels[point] == kNoise) labels[point] = cluster;
      if (seen) continue;
      const std::vector<int> near = Neighbours(points, point, eps);
      if (is_core(near)) open.insert(open.end(), near.begin(), near.end());
    }
  }
  return labels;
}

std::vector<std::vector<int>> GroupLayers(std::span<const LayerShape> layers, double eps,
                                          int min_samples) {
  std::map<std::vector<int>, std::vector<int>> by_candidates;
  for (int layer = 0; layer < static_cast<int>(layers.size()); ++layer) {
    by_candidates[layers[layer].candidates].push_back(layer);
  }
  std::vector<std::vector<int>> groups;
  for (const auto& [candidates, members] : by_candidates) {
    std::vector<std::vector<double>> losses;
    for (const int layer : members) losses.push_back(layers[layer].losses);
    const std::vector<int> labels = Dbscan(losses, eps, min_samples);
    std::map<int, std::vector<int>> clusters;
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (labels[i] == kNoise) {
        groups.push_back({members[i]});
      } else {
        clusters[labels[i]].push_back(members[i]);
      }
    }
    for (auto& [label, cluster] : clusters) groups.push_back(std::move(cluster));
  }
  std::sort(groups.begin(), groups.end());
  return groups;
}

}  // namespace kvferry::calibrate
