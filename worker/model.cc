#include "worker/model.h"

#include "kvcodec/codec.h"
#include "rpc/fingerprint.h"
#include "transport/wire.h"

namespace kvferry::worker {

absl::StatusOr<std::unique_ptr<model::Model>> LoadModel(const v1::ModelSource& source,
                                                        const Device& device) {
  return model::Model::Load({.path = source.path(),
                             .random_weights = source.random_weights(),
                             .compute = source.compute() == "bf16" ? model::ComputeType::kBf16
                                                                   : model::ComputeType::kFp32,
                             .threads = static_cast<int>(source.threads()),
                             .device = source.device(),
                             .stream = device.model_stream});
}

v1::Fingerprint MakeFingerprint(const model::Model& model, const std::string& model_name) {
  const model::ModelConfig& config = model.config();
  v1::Fingerprint fingerprint;
  fingerprint.set_wire_version(transport::kWireMajor);
  fingerprint.set_model_name(model_name);
  fingerprint.set_weights_hash(model.weights_hash());
  fingerprint.set_layers(config.layers);
  fingerprint.set_kv_heads(config.kv_heads);
  fingerprint.set_head_dim(config.head_dim);
  fingerprint.set_rope_hash(config.RopeHash());
  fingerprint.set_vocabulary(config.vocabulary);
  fingerprint.set_tensor_parallel(1);
  fingerprint.set_codecs_hash(codec::RegistryHash());
  rpc::SealFingerprint(fingerprint);
  return fingerprint;
}

}  // namespace kvferry::worker
