#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"

namespace kvferry::calibrate {

// What runs, and how far it is; for people.
using Progress = std::function<void(std::string_view what, int done, int all)>;

// Says how far a model's answers with a codec are from its exact ones on some passages: all that a
// search wants to know. Thread: one at a time.
class KlMeter {
 public:
  virtual ~KlMeter() = default;
  // Mean KL(exact || codec) over all scored positions, in nats, of each codec. The more at once,
  // the less each takes.
  virtual absl::StatusOr<std::vector<double>> Measure(std::span<const codec::Codec> codecs) = 0;
};

}  // namespace kvferry::calibrate
