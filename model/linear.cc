#include "model/linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <cstring>
#include <utility>

#include "kvcodec/half.h"
#include "model/dequantize.h"
#include "model/row_products.h"

namespace kvferry::model {
namespace {

// Up to this many rows our own products, which read each weight once, beat the library's.
constexpr std::int64_t kFewRows = 16;
// Outputs that are worth a thread.
constexpr std::int64_t kGrain = 64;

at::Tensor Wrap(const float* data, std::int64_t rows, std::int64_t columns) {
  return at::from_blob(const_cast<float*>(data), {rows, columns}, at::kFloat);
}

}  // namespace

Linear::Linear(const std::vector<std::vector<float>>& parts, std::int64_t inputs,
               std::vector<float> bias, ComputeType compute)
    : bias_(std::move(bias)), inputs_(inputs) {
  std::size_t values = 0;
  for (const auto& part : parts) values += part.size();
  outputs_ = static_cast<std::int64_t>(values) / inputs;
  const bool bf16 = compute == ComputeType::kBf16;
  weight_ = at::empty({outputs_, inputs_}, bf16 ? at::kBFloat16 : at::kFloat);
  std::int64_t at = 0;
  for (const auto& part : parts) {
    if (bf16) {
      auto* out = static_cast<std::uint16_t*>(weight_.data_ptr()) + at;
      for (std::size_t i = 0; i < part.size(); ++i) out[i] = codec::Bf16FromFloat(part[i]);
    } else {
      std::memcpy(weight_.data_ptr<float>() + at, part.data(), part.size() * sizeof(float));
    }
    at += static_cast<std::int64_t>(part.size());
  }
}

void Linear::Apply(const float* x, std::int64_t rows, float* out) const {
  const bool can_split = weight_.scalar_type() == at::kFloat || inputs_ % 2 == 0;
  if (rows <= kFewRows && can_split) {
    ApplyFew(x, rows, out);
  } else {
    ApplyMany(x, rows, out);
  }
  AddBias(rows, out);
}

void Linear::ApplyFew(const float* x, std::int64_t rows, float* out) const {
  RowProducts work{.inputs = static_cast<int>(inputs_),
                   .x = x,
                   .rows = static_cast<int>(rows),
                   .out = out,
                   .out_stride = outputs_};
  if (weight_.scalar_type() == at::kFloat) {
    work.fp32 = weight_.data_ptr<float>();
  } else {
    work.bf16 = static_cast<const std::uint16_t*>(weight_.data_ptr());
    split_.resize(static_cast<std::size_t>(rows * inputs_));
    for (std::int64_t row = 0; row < rows; ++row) {
      SplitRow(x + row * inputs_, work.inputs, split_.data() + row * inputs_);
    }
    work.x = split_.data();
  }
  at::parallel_for(0, outputs_, kGrain, [&work](std::int64_t begin, std::int64_t end) {
    ComputeRowProducts(work, begin, end);
  });
}

void Linear::ApplyMany(const float* x, std::int64_t rows, float* out) const {
  const at::Tensor input = Wrap(x, rows, inputs_);
  at::Tensor output = Wrap(out, rows, outputs_);
  if (weight_.scalar_type() == at::kFloat) {
    at::mm_out(output, input, weight_.t());
  } else {
    output.copy_(at::linear(input.to(at::kBFloat16), weight_));
  }
}

void Linear::AddBias(std::int64_t rows, float* out) const {
  if (bias_.empty()) return;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < outputs_; ++i) out[row * outputs_ + i] += bias_[i];
  }
}

void Linear::Row(std::int64_t output, float* out) const {
  if (weight_.scalar_type() == at::kFloat) {
    std::memcpy(out, weight_.data_ptr<float>() + output * inputs_, inputs_ * sizeof(float));
    return;
  }
  const auto* bytes = static_cast<const std::uint8_t*>(weight_.data_ptr()) + output * inputs_ * 2;
  Dequantize(TensorType::kBF16, {bytes, static_cast<std::size_t>(inputs_) * 2}, out);
}

}  // namespace kvferry::model
