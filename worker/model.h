#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvferry/v1/config.pb.h"
#include "kvferry/v1/types.pb.h"
#include "model/model.h"
#include "worker/device.h"

namespace kvferry::worker {

// Errors: Model::Load.
absl::StatusOr<std::unique_ptr<model::Model>> LoadModel(const v1::ModelSource& source,
                                                        const Device& device);

// What two workers must have in common to serve a request together (docs/protocol.md), sealed.
//   model_name: of the configuration.
v1::Fingerprint MakeFingerprint(const model::Model& model, const std::string& model_name);

}  // namespace kvferry::worker
