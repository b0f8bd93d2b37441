#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/correlation.h"
#include "bench/quality/quality.h"
#include "bench/quality/scheme.h"
#include "bench/quality/statistics.h"

namespace kvferry::bench {

// Where the information is: one factor changed at a time, by Simulation.
struct ReportOptions {
  std::string state;                // as QualityOptions
  std::vector<std::string> groups;  // of ReportRows; empty: all
  MeasureOptions measure;           // greedy_tokens and probe_tokens are not looked at
  int passages = 4;
  std::uint64_t seed = 1;
};

struct ReportRow {
  SimulatedCodec codec;
  double bits = 0;  // per value of the cache after the last token
  std::size_t passages = 0, positions = 0;
  Interval kl;     // mean, nats
  Interval ratio;  // of perplexities, to the exact model at the same positions
  double agreement = 0;
  double seconds = 0;
};

struct ReportResult {
  std::vector<ReportRow> rows;
  std::vector<LayerCorrelations> correlations;
  int passages = 0;
};

// Measures what the state file does not have yet and sums up. The backend, on CPUs, makes the bytes
// of production codecs.
absl::StatusOr<ReportResult> RunReport(const ReportOptions& options, Device& device,
                                       const codec::Backend& backend, const Text& text,
                                       const Measure::Progress& progress);

// As MeasureQualityPart, of the rows of the report.
absl::Status MeasureReportPart(const ReportOptions& options, const Part& part, Device& device,
                               const codec::Backend& backend, const Text& text,
                               const Measure::Progress& progress);

std::string FormatReport(const ReportResult& result);
nlohmann::json ToJson(const ReportResult& result);

}  // namespace kvferry::bench
