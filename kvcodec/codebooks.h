#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Learned codebooks of coupled blocks (Coupled Quantization, arXiv 2405.03917): the channels of a
// head in groups of neighbours, and for every group of every head of every layer a table of
// centroids. `kvferry calibrate codebooks` makes the file (docs/format.md, "Codebooks").
namespace kvferry::codec {

// The shape of a model's cache on one worker.
struct CacheGeometry {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  bool operator==(const CacheGeometry&) const = default;
};

// How channels are coupled: `bits` for every group of `channels`. 0: not coupled.
struct Coupling {
  int channels = 0;
  int bits = 0;
  int centroids() const { return 1 << bits; }
  bool operator==(const Coupling&) const = default;
};
// Whether some kind of block has it: 2c8b, 4c8b, 8c8b, 8c10b, 2c4b.
bool IsCoupling(const Coupling& coupling);

struct CodebookShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  Coupling coupling;

  int groups() const { return head_dim / coupling.channels; }
  // Centroid values of one side (K or V) of one head: [group][code][channel of the group].
  std::size_t side_values() const {
    return static_cast<std::size_t>(head_dim) * coupling.centroids();
  }
  // Of all: [layer][head][K, V] of those.
  std::size_t values() const { return side_values() * 2 * kv_heads * layers; }
  bool operator==(const CodebookShape&) const = default;
};

// The centroids of one side of one head, in the two orders in which they are read.
struct SideCodebook {
  // fp16, [group][code][channel of the group]: to look one up. What attention reads at random
  // should fit into a cache near to the core.
  const std::uint16_t* by_code = nullptr;
  // fp32, [group][channel of the group][code]: to find the nearest.
  const float* by_channel = nullptr;
};

// Turns the keys of a block back to what they were before RoPE, where their channels are coupled,
// and forward again. A token at p0 + t turns by p0 * f and by t * f one after the other: the first
// is the same for a whole block, the second for all blocks. Immutable. Thread: any.
class KeyRotation {
 public:
  // frequencies: [head_dim / 2], channel i turns with channel i + head_dim / 2.
  explicit KeyRotation(std::span<const float> frequencies);

  int half() const { return static_cast<int>(frequencies_.size()); }
  std::span<const float> frequencies() const { return frequencies_; }
  // cos, sin: [half] of position * f, computed in double and rounded.
  void Angles(std::int64_t position, float* cos, float* sin) const;
  // [64][half] of the tokens of a block, from its first.
  const float* token_cos() const { return cos_.data(); }
  const float* token_sin() const { return sin_.data(); }

 private:
  std::vector<float> frequencies_;
  std::vector<float> cos_, sin_;
};

// Immutable. Thread: any.
class Codebooks {
 public:
  // centroids: fp16, [layer][head][K, V][group][code][channel of the group].
  // frequencies: of the model's RoPE, [head_dim / 2]. record: JSON that says what they were learned
  // from. kInvalidArgument: sizes, a value that is not finite, a record that is no JSON object.
  static absl::StatusOr<std::shared_ptr<const Codebooks>> Create(
      const CodebookShape& shape, std::span<const float> frequencies,
      std::span<const std::uint16_t> centroids, std::string record);
  // kNotFound: no such file. kDataLoss: truncated or its check fails. kInvalidArgument: not of this
  // format and version, or as Create.
  static absl::StatusOr<std::shared_ptr<const Codebooks>> Open(const std::string& path);
  // Replaces `path` at once, so that no reader sees half a file.
  absl::Status Save(const std::string& path) const;

  const CodebookShape& shape() const { return shape_; }
  // kInvalidArgument: they were learned from a model of another shape.
  absl::Status FitsModel(const CacheGeometry& geometry) const;
  // Of everything that changes a code or a value: shape, frequencies, centroids.
  std::uint64_t hash() const { return hash_; }
  const std::string& record() const { return record_; }
  std::span<const std::uint16_t> centroids() const { return centroids_; }
  const KeyRotation& rotation() const { return rotation_; }
  SideCodebook Side(int layer, int kv_head, bool is_v) const;

 private:
  Codebooks(const CodebookShape& shape, std::span<const float> frequencies, std::string record)
      : shape_(shape), rotation_(frequencies), record_(std::move(record)) {}

  CodebookShape shape_;
  KeyRotation rotation_;
  std::string record_;
  std::uint64_t hash_ = 0;
  std::vector<std::uint16_t> centroids_;
  std::vector<float> by_channel_;
};

// Those that a process has read, by hash: what a codec named by a peer is completed from.
using CodebookSet = std::map<std::uint64_t, std::shared_ptr<const Codebooks>>;

}  // namespace kvferry::codec
