#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/json_lines.h"
#include "calibrate/kl_meter.h"

namespace kvferry::calibrate {

// Keeps what another meter says in a file, and asks it nothing twice: a search that was stopped
// comes to where it was at once.
class RecordedMeter final : public KlMeter {
 public:
  // `run`: all that a divergence depends on beside the codec. `meter` outlives it. Errors as
  // JsonLines::Open; kDataLoss: a line that is no measurement.
  static absl::StatusOr<std::unique_ptr<RecordedMeter>> Open(const std::string& path,
                                                             const nlohmann::json& run,
                                                             KlMeter& meter, Progress progress);

  // In parts that are in the file before the next begins.
  absl::StatusOr<std::vector<double>> Measure(std::span<const codec::Codec> codecs) override;

 private:
  RecordedMeter(std::unique_ptr<bench::JsonLines> file, KlMeter& meter, Progress progress)
      : file_(std::move(file)), meter_(meter), progress_(std::move(progress)) {}

  std::unique_ptr<bench::JsonLines> file_;
  KlMeter& meter_;
  const Progress progress_;
  std::map<std::uint64_t, double> known_;  // by the codec's hash
};

}  // namespace kvferry::calibrate
