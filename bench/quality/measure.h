#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/attention_probe.h"
#include "bench/quality/compare.h"
#include "bench/quality/device.h"
#include "bench/quality/passages.h"
#include "bench/quality/prompt.h"
#include "bench/quality/record.h"
#include "kvcodec/cpu/worker_pool.h"

namespace kvferry::bench {

struct MeasureOptions {
  int prompt_tokens = 1024;  // prefilled with exact attention
  int decode_tokens = 1024;  // that follow; the first is of the exact prefill and not scored
  int greedy_tokens = 512;   // generated, the first by the exact prefill; 0: none
  int probe_tokens = 128;    // over which attention outputs are compared; 0: they are not
};

// What the exact model says about a passage: fp32 K and V, no cache format at all.
struct ExactPassage {
  PrefilledPrompt prompt;     // fp16; its session goes on with one continuation after another
  std::vector<float> logits;  // [decode_tokens - 1, vocabulary], after each decode token
  std::vector<std::int32_t> greedy;  // [greedy_tokens], its own continuation of the prompt
  Record record;                     // its likelihoods
};

// What the exact caches of some passages did in a probe, by 16-bit type and window: the same for
// all codecs with these.
using ProbeTraces = std::map<std::string, ProbeTrace>;

// Measures codecs on passages through the path that serves them: exact prefill, hand-off, pool,
// windows, flushes and decode attention of the nodes. Thread: one at a time.
class Measure {
 public:
  // What runs, and how far it is; for people.
  using Progress = std::function<void(std::string_view what, int done, int all)>;

  // kInvalidArgument: options that the model's context does not hold, or that leave nothing to
  // score. `device` outlives it.
  static absl::StatusOr<Measure> Create(Device& device, const MeasureOptions& options,
                                        Progress progress);

  int passage_tokens() const { return options_.prompt_tokens + options_.decode_tokens; }
  // Positions that a passage is scored at.
  int scored() const { return options_.decode_tokens - 1; }

  absl::StatusOr<ExactPassage> RunExact(const Passage& passage) const;

  // All passages step together, so that weights are read once. exact: of the same passages, as
  // traces, which are used and added to.
  // kUnimplemented: the device does not have the codec. kFailedPrecondition: the codec was
  // bypassed, nothing that was lossy has been read. kInternal: bytes in the buffers are not those
  // of the formula.
  absl::StatusOr<std::vector<Record>> RunCodec(const codec::Codec& codec,
                                               std::span<const Passage> passages,
                                               std::span<const ExactPassage> exact,
                                               ProbeTraces& traces) const;

 private:
  struct Caches;  // of one codec: stores and batches
  // What greedy decode has said, by passage.
  struct Trajectory {
    std::vector<std::int32_t> tokens;  // [greedy_tokens], the first of the exact prefill
    std::vector<float> logits;         // [greedy_tokens - 1, vocabulary], after each but the last

    // row: [vocabulary] after the last token.
    void Add(std::span<const float> row);
  };

  Measure(Device& device, const MeasureOptions& options, Progress progress);

  // with_exact: also what a probe compares with.
  absl::StatusOr<std::unique_ptr<Caches>> MakeCaches(const codec::Codec& codec,
                                                     std::size_t passages, bool with_exact) const;
  // Ships each prompt into all caches; the wire bytes go to the records.
  absl::Status ShipPrompts(std::span<const Passage> passages, std::span<const ExactPassage> exact,
                           Caches& caches, std::span<Record> records) const;
  absl::Status ShipPrompt(std::span<const codec::KvView> layers, Caches& caches,
                          Record& record) const;
  // These fill the records; the first two give what CheckNotBypassed wants to know.
  absl::StatusOr<std::uint32_t> RunProbe(std::span<const Passage> passages, Caches& caches,
                                         ProbeTrace& trace, std::span<Record> records) const;
  absl::StatusOr<std::uint32_t> RunDecode(std::span<const Passage> passages,
                                          std::span<const ExactPassage> exact, Caches& caches,
                                          std::span<Record> records,
                                          std::span<Trajectory> answers) const;
  absl::Status CompareStep(int step, std::span<const Passage> passages,
                           std::span<const ExactPassage> exact, std::span<const float> logits,
                           std::span<Record> records) const;
  absl::Status ScoreAnswers(std::span<const ExactPassage> exact,
                            std::span<const Trajectory> answers, std::span<Record> records) const;
  absl::Status ScoreTrajectory(const ExactPassage& exact, const Trajectory& trajectory,
                               Record& record) const;
  absl::Status CheckNotBypassed(const codec::Codec& codec, std::uint32_t exact_check,
                                std::uint32_t check) const;
  absl::Status CheckBytes(const Caches& caches, std::span<const Record> records) const;

  Device& device_;
  const MeasureOptions options_;
  const Progress progress_;
  // Comparing two rows of logits takes as long as a step on a GPU.
  std::unique_ptr<codec::cpu::WorkerPool> workers_;
};

}  // namespace kvferry::bench
