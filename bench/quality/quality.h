#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/device.h"
#include "bench/quality/measure.h"
#include "bench/quality/summary.h"
#include "model/tokenizer.h"

namespace kvferry::bench {

// The text that a run scores, as the model's tokenizer has it.
struct Text {
  std::string name;  // of files and folders, without their paths
  std::vector<std::int32_t> tokens;
  std::string check;  // CRC32C of the bytes
};

// UTF-8 files, taken as they are, one after the other; of a folder all .py files below it, in the
// order of their paths. kNotFound, kInvalidArgument.
absl::StatusOr<Text> ReadText(std::span<const std::string> paths,
                              const model::Tokenizer& tokenizer);

// A whole run of the quality bench.
struct QualityOptions {
  std::string state;  // JSON lines; what they have is not measured again
  std::vector<codec::Codec> codecs;
  MeasureOptions measure;
  int passages = 8;
  int batch = 8;  // passages that step together
  std::uint64_t seed = 1;
};

// Every `count`th row from the `index`th on: what one of several processes measures.
struct Part {
  int index = 0;
  int count = 1;
  bool Has(std::size_t row) const {
    return row % static_cast<std::size_t>(count) == static_cast<std::size_t>(index);
  }
};
// "2/5": index and count. kInvalidArgument: anything else.
absl::StatusOr<Part> ParsePart(std::string_view text);

// A codec that was asked for and that the device does not have.
struct SkippedCodec {
  std::string codec, why;
};

struct QualityResult {
  std::string device;  // its name
  codec::CacheGeometry geometry;
  Interval exact_perplexity;  // fp32, without a cache format
  double seconds = 0;         // that all of it took to measure, in however many runs
  std::vector<SkippedCodec> skipped;
  std::vector<Summary> rows;  // fp16 first, it is the baseline, then as asked for
};

// "kivi-4,kivi-2:sinks=0,recent=128" -> two codecs: a setting belongs to the codec before it.
// kNotFound, kInvalidArgument: as FindCodec, or no codec at all.
absl::StatusOr<std::vector<codec::Codec>> ParseCodecs(std::string_view list);

// The rows with which issue and literature are checked: keys against values, sinks, groups, recent.
std::vector<codec::Codec> SanityCodecs();

// Measures what the state file does not have yet and sums up. `progress` is for people.
absl::StatusOr<QualityResult> RunQuality(const QualityOptions& options, Device& device,
                                         const Text& text, Measure::Progress progress);
// Measures as much of it as is in `part`, into the state file alone. The lines of the parts' files,
// one after the other, are the state of the whole.
absl::Status MeasureQualityPart(const QualityOptions& options, const Part& part, Device& device,
                                const Text& text, Measure::Progress progress);

}  // namespace kvferry::bench
