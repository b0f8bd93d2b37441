#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace kvferry::model {

// Fills a tensor of a model whose weights are not at hand, for benchmarks of its shape: values
// depend on `name` and their index alone. Norms are 1; biases are small; a matrix keeps the size of
// what it is multiplied with.
//   columns: of the matrix, the size of its last dimension.
void FillRandomTensor(std::string_view name, std::int64_t columns, std::span<float> values);

}  // namespace kvferry::model
