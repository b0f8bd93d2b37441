#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace kvferry::cli {

enum class OutputFormat { kTable, kJson };

// Adds --output table|json.
void AddOutputFlag(CLI::App& command, OutputFormat& format);

// Columns of left-aligned text, two spaces apart; the first row is the heading.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);
// "13.6 MiB", "4,608 B".
std::string FormatBytes(double bytes);
// "12.3 ms", "1.84 s".
std::string FormatSeconds(double seconds);

// Exit codes of every command; `kvferry --help` lists them.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;       // anything below does not fit
inline constexpr int kExitUsage = 2;        // flags or request are wrong
inline constexpr int kExitUnavailable = 3;  // nobody answers at the address, or the time is up
inline constexpr int kExitBusy = 4;         // refused for now: no pages, queue full
inline constexpr int kExitOperator =
    5;  // certificates, roles, fingerprints: someone must change something
inline constexpr int kExitDataLoss = 6;  // bytes that do not pass their check

// Prints the error to stderr and gives its exit code.
int Fail(const absl::Status& status);

}  // namespace kvferry::cli
