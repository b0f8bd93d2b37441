#include "bench/quality/attention_probe.h"

#include <cmath>

#include "common/crc32c.h"

namespace kvferry::bench {

void AttentionProbe::Compare(int layer, std::span<const float> exact,
                             std::span<const float> lossy) {
  for (std::size_t sequence = 0; sequence < sequences(); ++sequence) {
    Squares& squares = squares_[sequence * layers_ + static_cast<std::size_t>(layer)];
    for (std::size_t i = sequence * width_; i < (sequence + 1) * width_; ++i) {
      const double value = exact[i], difference = value - lossy[i];
      squares.difference += difference * difference;
      squares.exact += value * value;
    }
  }
}

void AttentionProbe::AddToCheck(std::span<const float> logits) {
  check_ = Crc32c(std::as_bytes(logits), check_);
}

std::vector<double> AttentionProbe::Errors(std::size_t sequence) const {
  std::vector<double> errors;
  for (std::size_t layer = 0; layer < layers_; ++layer) {
    const Squares& squares = squares_[sequence * layers_ + layer];
    errors.push_back(std::sqrt(squares.difference / squares.exact));
  }
  return errors;
}

}  // namespace kvferry::bench
