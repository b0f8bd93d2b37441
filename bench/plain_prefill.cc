#include "bench/plain_prefill.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "common/device_name.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"
#include "model/sampler.h"

namespace kvferry::bench {

absl::StatusOr<std::unique_ptr<PlainPrefill>> PlainPrefill::Load(const Options& options) {
  std::unique_ptr<PlainPrefill> plain(new PlainPrefill(options.chunk_tokens));
  KVF_ASSIGN_OR_RETURN(const std::optional<int> gpu, GpuOrdinal(options.device));
  if (gpu.has_value()) {
    KVF_RETURN_IF_ERROR(kernels::UseDevice(*gpu));
    KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create());
    plain->stream_ = std::make_unique<kernels::Stream>(std::move(stream));
  }
  KVF_ASSIGN_OR_RETURN(
      plain->model_,
      model::Model::Load({.path = options.config,
                          .random_weights = true,
                          .compute = options.compute,
                          .threads = 2,  // as the workers of tests/integration/cluster
                          .device = options.device,
                          .stream = gpu.has_value() ? plain->stream_->get() : nullptr}));
  return plain;
}

absl::StatusOr<double> PlainPrefill::Run(std::span<const std::int32_t> ids, codec::Raw16 type) {
  KVF_ASSIGN_OR_RETURN(const auto session,
                       model_->StartPrefill(static_cast<int>(ids.size()), type));
  const auto ignore = [](int, const codec::KvView&) { return absl::OkStatus(); };
  const std::size_t step = chunk_tokens_;
  const absl::Time begin = absl::Now();
  std::size_t at = 0;
  for (; at + step < ids.size(); at += step) {
    KVF_RETURN_IF_ERROR(session->RunAhead(ids.subspan(at, step), ignore));
  }
  KVF_RETURN_IF_ERROR(session->Run(ids.subspan(at), ignore));
  const std::int32_t token =
      model::SampleToken(session->logits(), {}, ids, static_cast<std::uint32_t>(ids.size()));
  const absl::Duration took = absl::Now() - begin;
  if (token == model::kNoToken) return absl::InternalError("the logits are not numbers");
  return absl::ToDoubleSeconds(took);
}

}  // namespace kvferry::bench
