#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

// What every bench writes: one JSON file with machine, date, commit, command and a list of rows.
namespace kvferry::bench {

// Median, and the least and greatest of the runs, in the unit that the row names.
struct Spread {
  double median = 0, min = 0, max = 0;
  int runs = 0;
};
Spread Summarize(std::vector<double> samples);
nlohmann::json ToJson(const Spread& spread);

// Where a report comes from: bench, command (how to run it again), date, commit, machine.
nlohmann::json ReportHeader(const std::string& name, int argc, char** argv);
// kInternal: cannot write. Nothing is written when `path` is empty.
absl::Status WriteReport(const nlohmann::json& report, const std::string& path);

class Report {
 public:
  Report(const std::string& name, int argc, char** argv);
  // A ratio against a baseline of the same run, with the bar that it is held to.
  void AddRatio(const std::string& what, double ratio, const std::string& baseline,
                const std::string& bar, nlohmann::json details);
  // Prints a table line per row to stdout as they come; writes the file when `path` is not empty.
  absl::Status Write(const std::string& path) const;

 private:
  nlohmann::json report_;
};

}  // namespace kvferry::bench
