#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace kvferry::model {

// y = W x + b with fp32 activations; the weights are fp32 or bf16. Thread: one at a time (it has a
// work space).
class Linear {
 public:
  Linear() = default;
  // `parts`: matrices of the same width, [outputs, inputs] each, stacked. `bias`: empty or one
  // value per output.
  Linear(const std::vector<std::vector<float>>& parts, std::int64_t inputs, std::vector<float> bias,
         ComputeType compute);

  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }

  // x: [rows, inputs]. out: [rows, outputs].
  void Apply(const float* x, std::int64_t rows, float* out) const;
  // Row `output` of W as fp32.
  void Row(std::int64_t output, float* out) const;

 private:
  void ApplyFew(const float* x, std::int64_t rows, float* out) const;
  void ApplyMany(const float* x, std::int64_t rows, float* out) const;
  void AddBias(std::int64_t rows, float* out) const;

  at::Tensor weight_;  // [outputs, inputs]
  std::vector<float> bias_;
  std::int64_t inputs_ = 0;
  std::int64_t outputs_ = 0;
  mutable std::vector<float> split_;  // activations as ComputeRowProducts wants them
};

}  // namespace kvferry::model
