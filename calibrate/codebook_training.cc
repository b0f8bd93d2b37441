#include "calibrate/codebook_training.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "calibrate/kmeans.h"
#include "calibrate/mix.h"
#include "common/status_macros.h"
#include "kvcodec/half.h"

namespace kvferry::calibrate {
namespace {

absl::Status CheckFinite(std::span<const float> values, const char* what, std::size_t row_values) {
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  if (bad == values.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "codebooks: ", what, " of token ", (bad - values.begin()) / row_values, " is not finite"));
}

// What RoPE did to one head, undone. from, to: [head_dim].
void TurnBack(const float* from, std::span<const float> cos, std::span<const float> sin,
              float* to) {
  const std::size_t half = cos.size();
  for (std::size_t i = 0; i < half; ++i) {
    const float low = from[i], high = from[i + half];
    to[i] = low * cos[i] + high * sin[i];
    to[i + half] = high * cos[i] - low * sin[i];
  }
}

// To the nearest of `centroids` ([codes, channels]).
float NearestSquaredDistance(std::span<const float> vector, std::span<const float> centroids) {
  float nearest = std::numeric_limits<float>::infinity();
  for (std::size_t at = 0; at < centroids.size(); at += vector.size()) {
    float sum = 0;
    for (std::size_t c = 0; c < vector.size(); ++c) {
      const float difference = vector[c] - centroids[at + c];
      sum += difference * difference;
    }
    nearest = std::min(nearest, sum);
  }
  return nearest;
}

SideErrors ErrorsOf(const LayerSamples::Group& group, int channels,
                    std::span<const float> centroids) {
  SideErrors errors;
  for (std::size_t i = 0; i < group.weights.size(); ++i) {
    const auto vector = std::span(group.vectors).subspan(i * channels, channels);
    SquareSums sums{.difference = NearestSquaredDistance(vector, centroids)};
    for (const float value : vector) sums.exact += static_cast<double>(value) * value;
    errors.plain += sums;
    const double weight = group.weights[i];
    errors.weighted += {.difference = weight * sums.difference, .exact = weight * sums.exact};
  }
  return errors;
}

// Writes the centroids of one group as fp16.
absl::StatusOr<SideErrors> TrainGroup(const LayerSamples::Group& group,
                                      const codec::Coupling& coupling,
                                      const TrainingOptions& options, std::uint64_t seed,
                                      std::span<std::uint16_t> out) {
  const std::vector<float> same(options.weighted ? 0 : group.weights.size(), 1.0f);
  KVF_ASSIGN_OR_RETURN(
      std::vector<float> centroids,
      WeightedKMeans(
          group.vectors, coupling.channels, options.weighted ? group.weights : same,
          {.centroids = coupling.centroids(), .iterations = options.iterations, .seed = seed}));
  for (std::size_t i = 0; i < centroids.size(); ++i) {
    out[i] = codec::HalfFromFloat(centroids[i]);
    if (!codec::HalfIsFinite(out[i])) {
      return absl::InvalidArgumentError(absl::StrCat("codebooks: a centroid has the value ",
                                                     centroids[i],
                                                     ", more than the format's 16 bits hold"));
    }
    centroids[i] = codec::FloatFromHalf(out[i]);
  }
  return ErrorsOf(group, coupling.channels, centroids);
}

}  // namespace

LayerSamples::LayerSamples(const codec::CodebookShape& shape)
    : shape_(shape), groups_(static_cast<std::size_t>(shape.kv_heads) * 2 * shape.groups()) {}

absl::Status LayerSamples::Add(const codec::KeyRotation& rotation,
                               const model::KvGradient& sequence, int first_token) {
  const auto head_dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t row = head_dim * shape_.kv_heads, size = sequence.k.size();
  if (size % row != 0 || sequence.v.size() != size || sequence.k_gradient.size() != size ||
      sequence.v_gradient.size() != size || rotation.half() * 2 != shape_.head_dim ||
      first_token < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codebooks: sequence of ", size, ", ", sequence.v.size(), ", ", sequence.k_gradient.size(),
        " and ", sequence.v_gradient.size(), " values of rows of ", row, ", from token ",
        first_token, ", and ", rotation.half(), " frequencies"));
  }
  KVF_RETURN_IF_ERROR(CheckFinite(sequence.k, "the key", row));
  KVF_RETURN_IF_ERROR(CheckFinite(sequence.v, "the value", row));
  KVF_RETURN_IF_ERROR(CheckFinite(sequence.k_gradient, "the key's gradient", row));
  KVF_RETURN_IF_ERROR(CheckFinite(sequence.v_gradient, "the value's gradient", row));

  std::vector<float> cos(head_dim / 2), sin(head_dim / 2), key(head_dim), key_gradient(head_dim);
  for (std::size_t token = first_token; token < size / row; ++token) {
    rotation.Angles(static_cast<std::int64_t>(token), cos.data(), sin.data());
    for (int head = 0; head < shape_.kv_heads; ++head) {
      const std::size_t at = token * row + head * head_dim;
      TurnBack(sequence.k.data() + at, cos, sin, key.data());
      TurnBack(sequence.k_gradient.data() + at, cos, sin, key_gradient.data());
      Append(key.data(), key_gradient.data(), head, /*is_v=*/false);
      Append(sequence.v.data() + at, sequence.v_gradient.data() + at, head, /*is_v=*/true);
    }
  }
  return absl::OkStatus();
}

void LayerSamples::Append(const float* values, const float* gradient, int head, bool is_v) {
  const int channels = shape_.coupling.channels;
  Group* group = groups_.data() + (head * 2 + (is_v ? 1 : 0)) * shape_.groups();
  for (int at = 0; at < shape_.head_dim; at += channels, ++group) {
    group->vectors.insert(group->vectors.end(), values + at, values + at + channels);
    float weight = 0;
    for (int c = 0; c < channels; ++c) weight += gradient[at + c] * gradient[at + c];
    group->weights.push_back(weight);
  }
}

SquareSums& SquareSums::operator+=(const SquareSums& other) {
  difference += other.difference;
  exact += other.exact;
  return *this;
}

double SquareSums::error() const { return exact > 0 ? std::sqrt(difference / exact) : 0; }

SideErrors& SideErrors::operator+=(const SideErrors& other) {
  weighted += other.weighted;
  plain += other.plain;
  return *this;
}

absl::StatusOr<LayerCodebooks> TrainLayer(const LayerSamples& samples, int layer,
                                          const TrainingOptions& options) {
  const codec::CodebookShape& shape = samples.shape();
  const std::span<const LayerSamples::Group> groups = samples.groups();
  const int count = static_cast<int>(groups.size());
  const std::size_t values =
      static_cast<std::size_t>(shape.coupling.channels) * shape.coupling.centroids();
  LayerCodebooks books;
  books.centroids.resize(values * groups.size());
  std::vector<absl::StatusOr<SideErrors>> errors(groups.size());
  const std::uint64_t seed = Mix(options.seed, layer);
#pragma omp parallel num_threads(options.threads)
  {
    omp_set_num_threads(1);  // of the k-means of this thread
#pragma omp for schedule(dynamic)
    for (int i = 0; i < count; ++i) {
      errors[i] = TrainGroup(groups[i], shape.coupling, options, Mix(seed, i),
                             std::span(books.centroids).subspan(i * values, values));
    }
  }
  for (int i = 0; i < count; ++i) {
    if (!errors[i].ok()) return errors[i].status();
    (i / shape.groups() % 2 == 0 ? books.k : books.v) += *errors[i];
  }
  return books;
}

}  // namespace kvferry::calibrate
