#include "calibrate/kmeans.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/utils/distances.h>

#include <algorithm>
#include <exception>
#include <limits>

#include "absl/strings/str_cat.h"
#include "calibrate/mix.h"

namespace kvferry::calibrate {
namespace {

// Vectors that count.
struct Points {
  int channels = 0;
  std::vector<float> vectors;  // [n, channels]
  std::vector<float> weights;  // [n], 1 in the mean
  std::size_t size() const { return weights.size(); }
};

Points PointsOf(std::span<const float> vectors, int channels, std::span<const float> weights) {
  Points points{.channels = channels};
  double total = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0)) continue;
    const auto vector = vectors.subspan(i * channels, channels);
    points.vectors.insert(points.vectors.end(), vector.begin(), vector.end());
    points.weights.push_back(weights[i]);
    total += weights[i];
  }
  if (points.size() == 0) {
    points.vectors.assign(vectors.begin(), vectors.end());
    points.weights.assign(weights.size(), 1.0f);
    return points;
  }
  // FAISS takes weights for numbers of vectors where it splits a cluster for one that is empty: of
  // small ones it would never find one that is large enough.
  const double scale = static_cast<double>(points.size()) / total;
  for (float& weight : points.weights) weight = static_cast<float>(weight * scale);
  return points;
}

double SquaredDistance(const float* a, const float* b, int channels) {
  double sum = 0;
  for (int c = 0; c < channels; ++c) {
    const double difference = static_cast<double>(a[c]) - b[c];
    sum += difference * difference;
  }
  return sum;
}

// Where the running sum of `chances` passes `target`; the last that has a chance when it never
// does.
std::size_t Pick(std::span<const double> chances, double target) {
  double sum = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < chances.size(); ++i) {
    if (chances[i] == 0) continue;
    sum += chances[i];
    last = i;
    if (sum > target) return i;
  }
  return last;
}

// Up to `count` of the points, all different: each with a chance of its weight times its squared
// distance from those before. Fewer when there are fewer different ones.
std::vector<float> Seeds(const Points& points, int count, std::uint64_t seed) {
  const int channels = points.channels;
  std::vector<double> distances(points.size(), std::numeric_limits<double>::infinity());
  std::vector<double> chances(points.weights.begin(), points.weights.end());
  std::vector<float> seeds;
  for (int k = 0; k < count; ++k) {
    double total = 0;
    for (const double chance : chances) total += chance;
    if (total == 0) break;
    const std::size_t picked = Pick(chances, Uniform(Mix(seed, k)) * total);
    const float* vector = points.vectors.data() + picked * channels;
    seeds.insert(seeds.end(), vector, vector + channels);
    for (std::size_t i = 0; i < points.size(); ++i) {
      distances[i] = std::min(
          distances[i], SquaredDistance(points.vectors.data() + i * channels, vector, channels));
      chances[i] = points.weights[i] * distances[i];
    }
  }
  return seeds;
}

absl::Status Check(std::span<const float> vectors, int channels, std::span<const float> weights,
                   const KMeansOptions& options) {
  if (channels < 1 || options.centroids < 1 || options.iterations < 0) {
    return absl::InvalidArgumentError(absl::StrCat("k-means: ", channels, " channels, ",
                                                   options.centroids, " centroids, ",
                                                   options.iterations, " iterations"));
  }
  if (weights.empty() || vectors.size() != weights.size() * channels) {
    return absl::InvalidArgumentError(absl::StrCat("k-means: ", vectors.size(), " values of ",
                                                   channels, " channels and ", weights.size(),
                                                   " weights"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<float>> WeightedKMeans(std::span<const float> vectors, int channels,
                                                  std::span<const float> weights,
                                                  const KMeansOptions& options) {
  if (absl::Status status = Check(vectors, channels, weights, options); !status.ok()) return status;
  // Its other way, by products of matrices, loses digits of vectors that are close, and has those
  // of whatever BLAS is linked.
  [[maybe_unused]] static const int direct = faiss::distance_compute_blas_threshold =
      std::numeric_limits<int>::max();
  const Points points = PointsOf(vectors, channels, weights);
  std::vector<float> centroids = Seeds(points, options.centroids, options.seed);
  const std::size_t values = static_cast<std::size_t>(options.centroids) * channels;
  if (centroids.size() < values) {
    for (std::size_t i = 0; centroids.size() < values; ++i)
      centroids.push_back(centroids[i % channels]);
    return centroids;
  }
  faiss::ClusteringParameters parameters;
  parameters.niter = options.iterations;
  parameters.min_points_per_centroid = 1;                                // no warning
  parameters.max_points_per_centroid = std::numeric_limits<int>::max();  // no sampling
  try {
    faiss::Clustering clustering(channels, options.centroids, parameters);
    clustering.centroids = std::move(centroids);
    faiss::IndexFlatL2 nearest(channels);
    clustering.train(static_cast<std::int64_t>(points.size()), points.vectors.data(), nearest,
                     points.weights.data());
    return std::move(clustering.centroids);
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("k-means: ", error.what()));
  }
}

}  // namespace kvferry::calibrate
