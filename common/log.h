#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

// One line per event on stderr: "time level event key=value ...". Backed by spdlog; no other file
// includes it.
//   Log(LogLevel::kWarning, "transfer_failed", {{"transfer", id}, {"peer", name}, {"why",
//   status.ToString()}});
namespace kvferry {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  std::string_view key;
  std::string value;
  LogField(std::string_view k, const absl::AlphaNum& v) : key(k), value(v.Piece()) {}
  LogField(std::string_view k, const absl::Status& v) : key(k), value(v.ToString()) {}
};

// Thread: any. Prompts and generated text never go into fields.
void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// Below it nothing is printed. kInvalidArgument: not "debug", "info", "warning", "error".
absl::Status SetLogLevel(std::string_view level);
// Put in front of every line: the process's name.
void SetLogName(std::string_view name);

}  // namespace kvferry
