#include "decode_node/host_step_runner.h"

#include <cmath>
#include <vector>

#include "common/status_macros.h"

namespace kvferry::decode {

// The attention of one step over all sequences of a batch. A sequence that is cancelled meanwhile
// loses its cache at the next layer; its row of the batch is then computed over a neighbour's
// cache, and dropped.
class HostStepRunner::BatchAttention final : public model::DecodeAttention {
 public:
  BatchAttention(const HostStepRunner& runner, const StepBatch& batch)
      : runner_(runner), batch_(batch) {
    for (StoredSequence* sequence : batch_.sequences) sequence->Append();
  }

  codec::Raw16 raw_type() const override { return runner_.store_.codec().raw_type; }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    batch_.drop_cancelled();
    const codec::CacheGeometry& geometry = runner_.store_.geometry();
    const std::size_t token = static_cast<std::size_t>(geometry.kv_heads) * geometry.head_dim;
    views_.clear();
    const StoredSequence* alive = nullptr;
    for (std::size_t i = 0; i < batch_.sequences.size(); ++i) {
      if (batch_.sequences[i] == nullptr) continue;
      batch_.sequences[i]->Put(layer, k + i * token, v + i * token);
      alive = batch_.sequences[i];
    }
    if (alive == nullptr) return absl::CancelledError("every sequence of the step was cancelled");
    for (const StoredSequence* sequence : batch_.sequences) {
      views_.push_back((sequence != nullptr ? sequence : alive)->View(layer));
    }
    return runner_.backend_.DecodeAttention(
        {.spec = runner_.store_.specs()[layer],
         .q_heads = runner_.model_.config().q_heads,
         .kv_heads = geometry.kv_heads,
         .scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim)),
         .sequences = views_,
         .q = q,
         .out = out});
  }

 private:
  const HostStepRunner& runner_;
  const StepBatch& batch_;
  std::vector<codec::SequenceKv> views_;
};

absl::StatusOr<std::span<const float>> HostStepRunner::Step(const StepBatch& batch) {
  logits_.resize(batch.tokens.size() * vocabulary());
  BatchAttention attention(*this, batch);
  KVF_RETURN_IF_ERROR(model_.DecodeStep(batch.tokens, batch.positions, attention, logits_));
  return logits_;
}

}  // namespace kvferry::decode
