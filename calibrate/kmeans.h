#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace kvferry::calibrate {

struct KMeansOptions {
  int centroids = 0;
  int iterations = 20;  // of Lloyd's, after the seeding
  std::uint64_t seed = 1;
};

// Centroids for which the sum over i of weights[i] * |vectors[i] - the nearest one|^2 is small:
// FAISS's k-means, from seeds of k-means++ (Arthur and Vassilvitskii, SODA 2007).
//   vectors: [n, channels], finite. weights: [n], finite and not negative; what has none does not
//   count, and where nobody has any, all count the same.
// [centroids, channels]. Of fewer different vectors than centroids there are those, and the first
// of them again and again. Takes the caller's OpenMP threads; the result is the same with any
// number. kInvalidArgument: no vectors, other sizes, options below 1 (iterations below 0).
absl::StatusOr<std::vector<float>> WeightedKMeans(std::span<const float> vectors, int channels,
                                                  std::span<const float> weights,
                                                  const KMeansOptions& options);

}  // namespace kvferry::calibrate
