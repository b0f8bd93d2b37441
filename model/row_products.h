#pragma once

#include <cstdint>

namespace kvferry::model {

// Products of a weight matrix with few activation rows. Every weight is read from memory once,
// whatever the number of activation rows: one decode step is bound by that read.
struct RowProducts {
  // [outputs, inputs], one of the two.
  const float* fp32 = nullptr;
  const std::uint16_t* bf16 = nullptr;
  int inputs = 0;
  // [rows, inputs]. For bf16 weights the row is split: its even inputs, then its odd ones
  // (SplitRow).
  const float* x = nullptr;
  int rows = 0;
  // [rows, outputs]
  float* out = nullptr;
  std::int64_t out_stride = 0;
};

// Of outputs [begin, end), accumulated in fp32. Thread: any, disjoint ranges at the same time.
void ComputeRowProducts(const RowProducts& work, std::int64_t begin, std::int64_t end);

// Even inputs first, then odd ones. `inputs` is even.
void SplitRow(const float* row, int inputs, float* out);

}  // namespace kvferry::model
