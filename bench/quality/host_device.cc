#include "bench/quality/host_device.h"

#include <utility>
#include <vector>

#include "bench/quality/cache_batch.h"
#include "bench/quality/host_attention.h"
#include "common/status_macros.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_step_runner.h"

namespace kvferry::bench {
namespace {

// Room for any layer's 16-bit tokens.
constexpr std::size_t kSlotBytes = std::size_t{64} << 20;

// Of a batch in host memory that is compared with an exact one.
class HostProbe : public AttentionProbe {
 protected:
  HostProbe(const HostDevice& device, CacheBatch& lossy)
      : AttentionProbe(
            lossy.size(), device.geometry().layers,
            static_cast<std::size_t>(device.model().config().q_heads) * device.geometry().head_dim),
        lossy_(lossy),
        lossy_out_(lossy.size() * width()),
        attention_(device) {}

  absl::Status CompareLayer(int layer, const float* q, std::span<const float> exact) {
    KVF_RETURN_IF_ERROR(attention_.Attend(lossy_, layer, q, lossy_out_.data()));
    Compare(layer, exact, lossy_out_);
    return absl::OkStatus();
  }

  CacheBatch& lossy_;
  std::vector<float> lossy_out_;
  HostAttention attention_;
};

class ExactProbe final : public HostProbe, private model::DecodeAttention {
 public:
  ExactProbe(const HostDevice& device, CacheBatch& exact, CacheBatch& lossy, ProbeTrace& trace)
      : HostProbe(device, lossy),
        device_(device),
        exact_(exact),
        trace_(trace),
        logits_(exact.size() * device.vocabulary()) {}

  absl::Status Step(std::span<const std::int32_t> tokens, bool compare) override {
    compare_ = compare;
    trace_.steps.emplace_back().layers.resize(static_cast<std::size_t>(device_.geometry().layers));
    const std::vector<std::int32_t> positions = exact_.Positions();
    for (decode::StoredSequence* cache : exact_.caches()) cache->Append();
    for (decode::StoredSequence* cache : lossy_.caches()) cache->Append();
    KVF_RETURN_IF_ERROR(device_.model().DecodeStep(tokens, positions, *this, logits_));
    AddToCheck(logits_);
    trace_.steps.back().check = check();
    KVF_RETURN_IF_ERROR(exact_.Flush());
    return lossy_.Flush();
  }

 private:
  codec::Raw16 raw_type() const override { return exact_.store().cache().codec().raw_type; }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    attention_.Put(lossy_, layer, k, v);
    attention_.Put(exact_, layer, k, v);
    KVF_RETURN_IF_ERROR(attention_.Attend(exact_, layer, q, out));
    const std::size_t values = exact_.size() *
                               static_cast<std::size_t>(device_.geometry().kv_heads) *
                               static_cast<std::size_t>(device_.geometry().head_dim);
    ProbeTrace::Layer& seen = trace_.steps.back().layers[static_cast<std::size_t>(layer)];
    seen.k.assign(k, k + values);
    seen.v.assign(v, v + values);
    if (!compare_) return absl::OkStatus();
    seen.q.assign(q, q + lossy_out_.size());
    seen.out.assign(out, out + lossy_out_.size());
    return CompareLayer(layer, q, seen.out);
  }

  const HostDevice& device_;
  CacheBatch& exact_;
  ProbeTrace& trace_;
  bool compare_ = false;
  std::vector<float> logits_;
};

// Shows what an ExactProbe has written down.
class ReplayedProbe final : public HostProbe {
 public:
  ReplayedProbe(const HostDevice& device, CacheBatch& lossy, const ProbeTrace& trace)
      : HostProbe(device, lossy), trace_(trace) {}

  absl::Status Step(std::span<const std::int32_t>, bool compare) override {
    const ProbeTrace::Step& step = trace_.steps[next_++];
    for (decode::StoredSequence* cache : lossy_.caches()) cache->Append();
    for (int layer = 0; layer < static_cast<int>(step.layers.size()); ++layer) {
      const ProbeTrace::Layer& seen = step.layers[static_cast<std::size_t>(layer)];
      attention_.Put(lossy_, layer, seen.k.data(), seen.v.data());
      if (compare) KVF_RETURN_IF_ERROR(CompareLayer(layer, seen.q.data(), seen.out));
    }
    set_check(step.check);
    return lossy_.Flush();
  }

 private:
  const ProbeTrace& trace_;
  std::size_t next_ = 0;
};

}  // namespace

absl::Status Supports(const Device& device, const codec::Codec& codec) {
  const codec::CacheGeometry geometry = device.geometry();
  for (int layer = 0; layer < geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, geometry.head_dim));
    KVF_RETURN_IF_ERROR(device.Supports(spec));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HostDevice>> HostDevice::Create(
    std::unique_ptr<model::Model> model, std::unique_ptr<codec::Backend> backend) {
  KVF_ASSIGN_OR_RETURN(decode::HostMemory slot, decode::HostMemory::Map(kSlotBytes));
  return std::unique_ptr<HostDevice>(
      new HostDevice(std::move(model), std::move(backend), std::move(slot)));
}

absl::Status HostDevice::Supports(const codec::BlockSpec& spec) const {
  return backend_->Supports(spec);
}

absl::StatusOr<std::unique_ptr<decode::CacheMemory>> HostDevice::MakeMemory(int) {
  return std::make_unique<decode::HostCacheMemory>(*backend_);
}

absl::StatusOr<std::unique_ptr<decode::StepRunner>> HostDevice::MakeRunner(
    const decode::CacheStore& store, int) {
  return std::make_unique<decode::HostStepRunner>(*model_, store, *backend_);
}

absl::StatusOr<std::unique_ptr<AttentionProbe>> HostDevice::MakeProbe(CacheBatch* exact,
                                                                      CacheBatch& lossy,
                                                                      ProbeTrace& trace) {
  if (exact == nullptr) return std::make_unique<ReplayedProbe>(*this, lossy, trace);
  return std::make_unique<ExactProbe>(*this, *exact, lossy, trace);
}

}  // namespace kvferry::bench
