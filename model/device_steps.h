#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "model/device_transformer.h"
#include "model/model.h"
#include "model/torch_device.h"

namespace kvferry::model {

// Model::StartDeviceSteps for a DeviceTransformer, which outlives them as `device` does.
absl::StatusOr<std::unique_ptr<DeviceSteps>> StartSteps(const DeviceTransformer& transformer,
                                                        const TorchDevice& device,
                                                        int max_sequences,
                                                        DeviceDecodeAttention& attention);

}  // namespace kvferry::model
