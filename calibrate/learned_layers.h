#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/json_lines.h"
#include "calibrate/codebook_training.h"

namespace kvferry::calibrate {

// Codebooks of the layers that are learned, in a file with which a run that was stopped goes on.
// Thread: one at a time.
class LearnedLayers {
 public:
  // run: all that the codebooks depend on. Errors as JsonLines::Open; kDataLoss: a line that is no
  // layer of `shape`.
  static absl::StatusOr<std::unique_ptr<LearnedLayers>> Open(const std::string& path,
                                                             const nlohmann::json& run,
                                                             const codec::CodebookShape& shape);

  int layers() const { return static_cast<int>(layers_.size()); }
  int count() const;
  // Null: not learned yet.
  const LayerCodebooks* Get(int layer) const {
    return layers_[layer].has_value() ? &*layers_[layer] : nullptr;
  }
  // In the file when it returns.
  absl::Status Put(int layer, LayerCodebooks books);

 private:
  LearnedLayers(std::unique_ptr<bench::JsonLines> file, int layers)
      : file_(std::move(file)), layers_(layers) {}

  std::unique_ptr<bench::JsonLines> file_;
  std::vector<std::optional<LayerCodebooks>> layers_;
};

}  // namespace kvferry::calibrate
