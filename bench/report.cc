#include "bench/report.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvferry::bench {
namespace {

std::string FirstLineOf(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "unknown";
  std::array<char, 256> line{};
  const bool got = fgets(line.data(), line.size(), pipe) != nullptr;
  pclose(pipe);
  return got ? std::string(absl::StripSuffix(line.data(), "\n")) : "unknown";
}

// In a bundle there is no repository: its script says what the bundle was built from.
std::string Commit() {
  const char* given = std::getenv("KVFERRY_COMMIT");
  return given != nullptr ? given : FirstLineOf("git rev-parse --short HEAD 2>/dev/null");
}

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

}  // namespace

Spread Summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const std::size_t middle = samples.size() / 2;
  const double median =
      samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {median, samples.front(), samples.back(), static_cast<int>(samples.size())};
}

nlohmann::json ToJson(const Spread& spread) {
  return {
      {"median", spread.median}, {"min", spread.min}, {"max", spread.max}, {"runs", spread.runs}};
}

nlohmann::json ReportHeader(const std::string& name, int argc, char** argv) {
  std::string command;
  for (int i = 0; i < argc; ++i) absl::StrAppend(&command, i == 0 ? "" : " ", argv[i]);
  return {{"bench", name},
          {"command", command},
          {"date", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
          {"commit", Commit()},
          {"machine",
           {{"cpu", CpuModel()},
            {"cores", std::thread::hardware_concurrency()},
            {"kernel", FirstLineOf("uname -r")}}}};
}

absl::Status WriteReport(const nlohmann::json& report, const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << report.dump(1) << '\n';
  file.close();
  return file.good() ? absl::OkStatus()
                     : absl::InternalError(absl::StrCat("cannot write '", path, "'"));
}

Report::Report(const std::string& name, int argc, char** argv)
    : report_(ReportHeader(name, argc, argv)) {
  report_["rows"] = nlohmann::json::array();
}

void Report::AddRatio(const std::string& what, double ratio, const std::string& baseline,
                      const std::string& bar, nlohmann::json details) {
  std::cout << absl::StrFormat("%-64s %8.3f x %s (bar %s)\n", what, ratio, baseline, bar)
            << std::flush;
  report_["rows"].push_back({{"what", what},
                             {"ratio", ratio},
                             {"baseline", baseline},
                             {"bar", bar},
                             {"details", std::move(details)}});
}

absl::Status Report::Write(const std::string& path) const { return WriteReport(report_, path); }

}  // namespace kvferry::bench
