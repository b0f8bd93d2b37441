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

class HostProbe final : public AttentionProbe, private model::DecodeAttention {
 public:
  HostProbe(const HostDevice& device, CacheBatch& exact, CacheBatch& lossy)
      : AttentionProbe(
            exact.size(), device.geometry().layers,
            static_cast<std::size_t>(device.model().config().q_heads) * device.geometry().head_dim),
        device_(device),
        exact_(exact),
        lossy_(lossy),
        lossy_out_(exact.size() * width()),
        logits_(exact.size() * device.vocabulary()),
        attention_(device) {}

  absl::StatusOr<std::span<const float>> Step(std::span<const std::int32_t> tokens,
                                              bool compare) override {
    compare_ = compare;
    const std::vector<std::int32_t> positions = exact_.Positions();
    for (decode::StoredSequence* cache : exact_.caches()) cache->Append();
    for (decode::StoredSequence* cache : lossy_.caches()) cache->Append();
    KVF_RETURN_IF_ERROR(device_.model().DecodeStep(tokens, positions, *this, logits_));
    KVF_RETURN_IF_ERROR(exact_.Flush());
    KVF_RETURN_IF_ERROR(lossy_.Flush());
    return logits_;
  }

 private:
  codec::Raw16 raw_type() const override { return exact_.store().cache().codec().raw_type; }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    attention_.Put(lossy_, layer, k, v);
    attention_.Put(exact_, layer, k, v);
    KVF_RETURN_IF_ERROR(attention_.Attend(exact_, layer, q, out));
    if (!compare_) return absl::OkStatus();
    KVF_RETURN_IF_ERROR(attention_.Attend(lossy_, layer, q, lossy_out_.data()));
    Compare(layer, std::span(out, lossy_out_.size()), lossy_out_);
    return absl::OkStatus();
  }

  const HostDevice& device_;
  CacheBatch& exact_;
  CacheBatch& lossy_;
  bool compare_ = false;
  std::vector<float> lossy_out_, logits_;
  HostAttention attention_;
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

absl::StatusOr<std::unique_ptr<AttentionProbe>> HostDevice::MakeProbe(CacheBatch& exact,
                                                                      CacheBatch& lossy) {
  return std::make_unique<HostProbe>(*this, exact, lossy);
}

}  // namespace kvferry::bench
