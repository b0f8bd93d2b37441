#pragma once

#include <span>
#include <vector>

namespace kvferry::calibrate {

inline constexpr int kNoise = -1;

// DBSCAN (Ester et al., KDD 1996) with the Euclidean distance. A point with at least `min_samples`
// points within `eps`, itself included, is a core; cores within eps of each other and what is
// within eps of them are one cluster. Clusters are numbered as they are met; kNoise: in none.
std::vector<int> Dbscan(std::span<const std::vector<double>> points, double eps, int min_samples);

// A layer as the clustering sees it.
struct LayerShape {
  std::vector<int> candidates;  // which options it has left
  std::vector<double> losses;   // of each of them
};

// Layers that are searched as one (KVTuner, arXiv 2502.04420): with the same candidates and in one
// cluster of their losses; each that is in no cluster stands alone. Every layer is in one group;
// groups are ordered by their first layer, and layers rise within.
std::vector<std::vector<int>> GroupLayers(std::span<const LayerShape> layers, double eps,
                                          int min_samples);

}  // namespace kvferry::calibrate
