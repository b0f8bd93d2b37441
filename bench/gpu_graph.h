#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/stream.h"

// Timing of kernels: captured launches, replayed in turns with what they are compared with.
namespace kvferry::bench {

struct Quantiles {
  double p10 = 0, median = 0, p90 = 0;
};

// A captured sequence of launches that touches `bytes` bytes.
class Graph {
 public:
  // `launch` enqueues on `stream`.
  static absl::StatusOr<Graph> Capture(double bytes, kernels::Stream& stream,
                                       const std::function<absl::Status()>& launch);
  // Runs it once, which adds a sample in bytes per second.
  absl::Status Replay(kernels::Stream& stream);
  void Forget() { samples_.clear(); }
  Quantiles rate() const;
  double bytes() const { return bytes_; }

 private:
  Graph(double bytes, kernels::Graph graph) : bytes_(bytes), graph_(std::move(graph)) {}

  double bytes_;
  kernels::Graph graph_;
  std::vector<double> samples_;
};

// Replays all in turns, so that they meet the same clocks, `replays` times after a warm-up.
absl::Status Interleave(kernels::Stream& stream, int replays, const std::vector<Graph*>& graphs);

}  // namespace kvferry::bench
