#include "bench/quality/gpu_device.h"

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/quality/cache_batch.h"
#include "common/status_macros.h"
#include "decode_node/device_attention.h"
#include "decode_node/device_cache_memory.h"
#include "decode_node/device_step_runner.h"
#include "kernels/attention_variants.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"
#include "kernels/cuda_quantizer.h"
#include "kernels/quantize_block.h"
#include "kvcodec/half.h"

namespace kvferry::bench {
namespace {

constexpr std::size_t kSlotBytes = std::size_t{8} << 20;

float ToFloat(std::uint16_t bits, codec::Raw16 type) {
  if (type == codec::Raw16::kFp16) return codec::FloatFromHalf(bits);
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Both caches append and attend in one step of the model; the outputs are fetched and compared
// after it.
class GpuProbe final : public AttentionProbe, private model::DeviceDecodeAttention {
 public:
  static absl::StatusOr<std::unique_ptr<GpuProbe>> Create(int gpu, const Device& device,
                                                          kernels::Stream& stream,
                                                          CacheBatch& exact, CacheBatch& lossy) {
    std::unique_ptr<GpuProbe> probe(new GpuProbe(device, stream, exact, lossy));
    const auto attention = [&](const CacheBatch& batch) {
      return decode::DeviceAttention::Create(gpu, static_cast<int>(batch.size()),
                                             device.model().config().q_heads, batch.store().cache(),
                                             stream, kernels::DecodeAttention::Create);
    };
    KVF_ASSIGN_OR_RETURN(probe->exact_attention_, attention(exact));
    KVF_ASSIGN_OR_RETURN(probe->lossy_attention_, attention(lossy));
    const std::size_t bytes = probe->layer_values() * sizeof(std::uint16_t);
    KVF_ASSIGN_OR_RETURN(probe->lossy_out_, kernels::DeviceBuffer::Allocate(bytes));
    KVF_ASSIGN_OR_RETURN(probe->outputs_,
                         kernels::PinnedBuffer::Allocate(2 * bytes * device.geometry().layers));
    KVF_ASSIGN_OR_RETURN(probe->steps_,
                         device.model().StartDeviceSteps(static_cast<int>(exact.size()), *probe));
    return probe;
  }

  absl::Status Step(std::span<const std::int32_t> tokens, bool compare) override {
    compare_ = compare;
    const absl::Status status = Run(tokens);
    if (!status.ok()) {
      // What was enqueued before the error still works on the caches.
      stream_.Synchronize().IgnoreError();
      return status;
    }
    if (compare_) CompareLayers();
    AddToCheck(logits_);
    KVF_RETURN_IF_ERROR(exact_.Flush());
    return lossy_.Flush();
  }

 private:
  GpuProbe(const Device& device, kernels::Stream& stream, CacheBatch& exact, CacheBatch& lossy)
      : AttentionProbe(
            exact.size(), device.geometry().layers,
            static_cast<std::size_t>(device.model().config().q_heads) * device.geometry().head_dim),
        layers_(device.geometry().layers),
        stream_(stream),
        exact_(exact),
        lossy_(lossy),
        logits_(exact.size() * device.vocabulary()) {}

  std::size_t layer_values() const { return sequences() * width(); }
  // Where the outputs of a layer are fetched to: the exact ones, then the lossy ones.
  std::uint16_t* Outputs(int layer) const {
    return outputs_.as<std::uint16_t>() + 2 * layer_values() * static_cast<std::size_t>(layer);
  }

  absl::Status Run(std::span<const std::int32_t> tokens) {
    const std::vector<std::int32_t> positions = exact_.Positions();
    KVF_RETURN_IF_ERROR(exact_attention_->Begin(exact_.caches()));
    KVF_RETURN_IF_ERROR(lossy_attention_->Begin(lossy_.caches()));
    KVF_RETURN_IF_ERROR(steps_->SetInputs(tokens, positions));
    KVF_RETURN_IF_ERROR(steps_->Enqueue());
    return steps_->FetchLogits(logits_);  // waits for the stream
  }

  void CompareLayers() {
    std::vector<float> values(2 * layer_values());
    for (int layer = 0; layer < layers_; ++layer) {
      const std::uint16_t* const bits = Outputs(layer);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = ToFloat(bits[i], raw_type());
      Compare(layer, std::span(values).first(layer_values()),
              std::span(values).last(layer_values()));
    }
  }

  codec::Raw16 raw_type() const override { return exact_attention_->raw_type(); }

  absl::Status AppendAndAttend(int layer, const std::uint16_t* q, const std::uint16_t* k,
                               const std::uint16_t* v, std::uint16_t* out) override {
    auto* const lossy_out = lossy_out_.as<std::uint16_t>();
    KVF_RETURN_IF_ERROR(exact_attention_->AppendAndAttend(layer, q, k, v, out));
    KVF_RETURN_IF_ERROR(lossy_attention_->AppendAndAttend(layer, q, k, v, lossy_out));
    if (!compare_) return absl::OkStatus();
    const std::size_t bytes = layer_values() * sizeof(std::uint16_t);
    KVF_RETURN_IF_ERROR(kernels::CopyAsync(Outputs(layer), out, bytes, stream_));
    return kernels::CopyAsync(Outputs(layer) + layer_values(), lossy_out, bytes, stream_);
  }

  const int layers_;
  kernels::Stream& stream_;
  CacheBatch& exact_;
  CacheBatch& lossy_;
  std::unique_ptr<decode::DeviceAttention> exact_attention_, lossy_attention_;
  kernels::DeviceBuffer lossy_out_;  // of one layer
  kernels::PinnedBuffer outputs_;    // [layers, exact and lossy, sequences, width] 16 bit
  std::unique_ptr<model::DeviceSteps> steps_;
  bool compare_ = false;
  std::vector<float> logits_;
};

class GpuDevice final : public Device {
 public:
  GpuDevice(kernels::DeviceInfo info, std::unique_ptr<kernels::Stream> stream,
            std::unique_ptr<model::Model> model, std::unique_ptr<codec::Quantizer> quantizer,
            kernels::PinnedBuffer slot)
      : info_(std::move(info)),
        stream_(std::move(stream)),
        model_(std::move(model)),
        quantizer_(std::move(quantizer)),
        slot_(std::move(slot)) {}

  const std::string& name() const override { return info_.name; }
  model::Model& model() const override { return *model_; }
  const codec::Quantizer& quantizer() const override { return *quantizer_; }
  std::span<std::byte> slot() const override { return slot_.span(); }
  absl::Status WaitForPrefill() override { return stream_->Synchronize(); }
  std::string torch_device() const override { return absl::StrCat("cuda:", info_.ordinal); }
  void* stream() const override { return stream_->get(); }

  absl::Status Supports(const codec::BlockSpec& spec) const override {
    KVF_RETURN_IF_ERROR(kernels::SupportsQuantize(spec));
    if (kernels::FindAttentionVariant(spec) != nullptr) return absl::OkStatus();
    return absl::UnimplementedError(
        absl::StrCat("no decode attention on a GPU; there is ", kernels::ListAttentionVariants()));
  }

  absl::StatusOr<std::unique_ptr<decode::CacheMemory>> MakeMemory(int max_sequences) override {
    return decode::DeviceCacheMemory::Create({.gpu = info_.ordinal,
                                              .slot_bytes = kSlotBytes,
                                              .max_flush_items = geometry().layers * max_sequences},
                                             *stream_);
  }

  absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(const decode::CacheStore& store,
                                                                 int max_sequences) override {
    return decode::DeviceStepRunner::Create({.gpu = info_.ordinal, .max_sequences = max_sequences},
                                            *model_, store, *stream_,
                                            kernels::DecodeAttention::Create);
  }

  // Writes nothing down: a step takes less time than fetching what it is made of.
  absl::StatusOr<std::unique_ptr<AttentionProbe>> MakeProbe(CacheBatch* exact, CacheBatch& lossy,
                                                            ProbeTrace&) override {
    return GpuProbe::Create(info_.ordinal, *this, *stream_, *exact, lossy);
  }

 private:
  const kernels::DeviceInfo info_;
  const std::unique_ptr<kernels::Stream> stream_;  // of all work; the rest refers to it
  const std::unique_ptr<model::Model> model_;
  const std::unique_ptr<codec::Quantizer> quantizer_;
  const kernels::PinnedBuffer slot_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenGpuDevice(model::LoadOptions options, int gpu) {
  KVF_ASSIGN_OR_RETURN(kernels::DeviceInfo info, kernels::GetDevice(gpu));
  KVF_RETURN_IF_ERROR(kernels::UseDevice(gpu));
  KVF_ASSIGN_OR_RETURN(kernels::Stream created, kernels::Stream::Create());
  auto stream = std::make_unique<kernels::Stream>(std::move(created));
  options.device = absl::StrCat("cuda:", gpu);
  options.stream = stream->get();
  KVF_ASSIGN_OR_RETURN(auto model, model::Model::Load(options));
  KVF_ASSIGN_OR_RETURN(auto quantizer, kernels::CreateCudaQuantizer(*stream));
  KVF_ASSIGN_OR_RETURN(kernels::PinnedBuffer slot, kernels::PinnedBuffer::Allocate(kSlotBytes));
  return std::make_unique<GpuDevice>(std::move(info), std::move(stream), std::move(model),
                                     std::move(quantizer), std::move(slot));
}

}  // namespace kvferry::bench
