#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/host_device.h"
#include "bench/quality/passages.h"
#include "bench/quality/prompt.h"
#include "calibrate/kl_meter.h"
#include "model/model.h"

namespace kvferry::calibrate {

struct PassageOptions {
  int prompt_tokens = 512;  // prefilled with exact attention
  int decode_tokens = 128;  // that follow; scored, but for the first
  int batch = 64;           // sequences that step together, codecs times passages
};

// A passage with what the exact model makes of it.
struct ExactPassage {
  bench::Passage passage;
  bench::PrefilledPrompt prompt;  // fp16
  std::vector<float> logits;      // [decode_tokens - 1, vocabulary], after each decode token
};

// kInvalidArgument: passages or options that the model's context does not hold.
absl::StatusOr<std::vector<ExactPassage>> RunExactly(model::Model& model,
                                                     std::span<const bench::Passage> passages,
                                                     const PassageOptions& options,
                                                     const Progress& progress);

// Measures through the path that serves: hand-off, pool, windows, flushes and decode attention of
// the decode worker, teacher-forced. Several codecs step together, so that weights are read once.
class PassageKl final : public KlMeter {
 public:
  // All outlive it. Memory: 16-bit caches of `batch` sequences, as the codecs leave them.
  PassageKl(bench::HostDevice& device, std::span<const ExactPassage> passages,
            const PassageOptions& options);

  absl::StatusOr<std::vector<double>> Measure(std::span<const codec::Codec> codecs) override;

 private:
  struct Cache;  // of one codec
  class Together;

  absl::StatusOr<std::unique_ptr<Cache>> MakeCache(const codec::Codec& codec) const;
  absl::StatusOr<std::vector<double>> MeasureTogether(std::span<const codec::Codec> codecs);

  bench::HostDevice& device_;
  const std::span<const ExactPassage> passages_;
  const PassageOptions options_;
};

}  // namespace kvferry::calibrate
