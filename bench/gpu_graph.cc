#include "bench/gpu_graph.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/time/time.h"
#include "common/status_macros.h"
#include "kernels/cuda/event.h"

namespace kvferry::bench {

absl::StatusOr<Graph> Graph::Capture(double bytes, kernels::Stream& stream,
                                     const std::function<absl::Status()>& launch) {
  KVF_ASSIGN_OR_RETURN(kernels::Graph graph, kernels::Graph::Capture(stream, launch));
  return Graph(bytes, std::move(graph));
}

absl::Status Graph::Replay(kernels::Stream& stream) {
  KVF_ASSIGN_OR_RETURN(kernels::Event begin, kernels::Event::Create(true));
  KVF_ASSIGN_OR_RETURN(kernels::Event end, kernels::Event::Create(true));
  KVF_RETURN_IF_ERROR(begin.Record(stream));
  KVF_RETURN_IF_ERROR(graph_.Launch(stream));
  KVF_RETURN_IF_ERROR(end.Record(stream));
  KVF_RETURN_IF_ERROR(end.Synchronize());
  KVF_ASSIGN_OR_RETURN(const absl::Duration time, end.Since(begin));
  samples_.push_back(bytes_ / absl::ToDoubleSeconds(time));
  return absl::OkStatus();
}

Quantiles Graph::rate() const {
  std::vector<double> samples = samples_;
  std::sort(samples.begin(), samples.end());
  const auto at = [&](double q) {
    return samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

absl::Status Interleave(kernels::Stream& stream, int replays, const std::vector<Graph*>& graphs) {
  constexpr int kWarmUp = 3;
  for (int i = 0; i < replays + kWarmUp; ++i) {
    for (Graph* graph : graphs) {
      if (i == kWarmUp) graph->Forget();
      KVF_RETURN_IF_ERROR(graph->Replay(stream));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvferry::bench
