#pragma once

#include <memory>
#include <string>

#include "bench/quality/device.h"
#include "decode_node/host_memory.h"

namespace kvferry::bench {

// The CPUs of this machine.
class HostDevice final : public Device {
 public:
  // model: on CPUs. kResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<HostDevice>> Create(
      std::unique_ptr<model::Model> model, std::unique_ptr<codec::Backend> backend);

  const std::string& name() const override { return name_; }
  model::Model& model() const override { return *model_; }
  const codec::Backend& quantizer() const override { return *backend_; }
  std::span<std::byte> slot() const override { return slot_.bytes(); }
  absl::Status WaitForPrefill() override { return absl::OkStatus(); }
  std::string torch_device() const override { return "cpu"; }
  void* stream() const override { return nullptr; }

  absl::Status Supports(const codec::BlockSpec& spec) const override;
  absl::StatusOr<std::unique_ptr<decode::CacheMemory>> MakeMemory(int max_sequences) override;
  absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(const decode::CacheStore& store,
                                                                 int max_sequences) override;
  absl::StatusOr<std::unique_ptr<AttentionProbe>> MakeProbe(CacheBatch* exact, CacheBatch& lossy,
                                                            ProbeTrace& trace) override;

 private:
  HostDevice(std::unique_ptr<model::Model> model, std::unique_ptr<codec::Backend> backend,
             decode::HostMemory slot)
      : model_(std::move(model)), backend_(std::move(backend)), slot_(std::move(slot)) {}

  const std::string name_ = "cpu";
  const std::unique_ptr<model::Model> model_;
  const std::unique_ptr<codec::Backend> backend_;
  const decode::HostMemory slot_;
};

}  // namespace kvferry::bench
