#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model_config.h"

namespace kvferry::model {

// Keys and values of one layer over a sequence, and the gradients by them of the loss: the
// cross-entropy of every next token, in nats, summed. All [tokens, kv_heads, head_dim], k after
// RoPE.
struct KvGradient {
  std::span<const float> k, v, k_gradient, v_gradient;
};

// How much each key and value of a text matters to what the model says of it. On CPUs, in fp32.
// Thread: one at a time.
class KvGradients {
 public:
  virtual ~KvGradients() = default;

  // path: a .gguf file or a Hugging Face directory. threads: of LibTorch in this process; 0: all
  // cores. Errors as Model::Load.
  static absl::StatusOr<std::unique_ptr<KvGradients>> Load(const std::string& path, int threads);

  virtual const ModelConfig& config() const = 0;
  // As Model has it.
  virtual std::uint64_t weights_hash() const = 0;
  // Of RoPE: [head_dim / 2], channel i turns with channel i + head_dim / 2.
  virtual std::vector<float> rope_frequencies() const = 0;

  // From the last layer to the first. The spans are valid during the call; a status that is not OK
  // ends the run with it.
  using OnLayer = std::function<absl::Status(int layer, const KvGradient& gradient)>;
  // tokens: from position 0 on. The last one has no next token: its gradients are 0. Computes each
  // layer twice, so that memory holds the graph of one layer, and of all layers their inputs
  // alone. kInvalidArgument: fewer than two tokens, one outside the vocabulary, more than the
  // context.
  virtual absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) = 0;
};

}  // namespace kvferry::model
