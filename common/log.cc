#include "common/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/string_view.h"

namespace kvferry {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "kvferry", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

// The process's name, shown in every line. Set once at the start, before other threads log.
std::string& LineName() {
  static std::string name = "kvferry";
  return name;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// A peer's text must neither end the line nor reach the terminal as a control sequence.
bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

bool NeedsQuotes(const std::string& value) {
  return value.empty() || value.find_first_of(" \"\\=") != std::string::npos ||
         std::any_of(value.begin(), value.end(), IsControl);
}

void AppendValue(std::string& line, const std::string& value) {
  if (!NeedsQuotes(value)) {
    line += value;
    return;
  }
  line += '"';
  for (const char c : value) {
    if (c == '\n') {
      line += "\\n";
    } else if (IsControl(c)) {
      absl::StrAppend(&line, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      if (c == '"' || c == '\\') line += '\\';
      line += c;
    }
  }
  line += '"';
}

}  // namespace

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  std::string line = absl::StrCat(LineName(), " ", ToAbsl(event));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", ToAbsl(field.key), "=");
    AppendValue(line, field.value);
  }
  logger.log(ToSpdlog(level), "{}", line);
}

absl::Status SetLogLevel(std::string_view level) {
  for (const auto& [name, value] :
       {std::pair<std::string_view, spdlog::level::level_enum>{"debug", spdlog::level::debug},
        {"info", spdlog::level::info},
        {"warning", spdlog::level::warn},
        {"error", spdlog::level::err}}) {
    if (name == level) {
      Logger().set_level(value);
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("log.level: '", ToAbsl(level), "' is not debug, info, warning or error"));
}

void SetLogName(std::string_view name) { LineName() = std::string(name); }

}  // namespace kvferry
