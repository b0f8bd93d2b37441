#include "router/config.h"

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/convert.h"

namespace kvferry::router {
namespace {

absl::Status OutOfRange(const absl::AlphaNum& path, const absl::AlphaNum& value,
                        const absl::AlphaNum& allowed) {
  return absl::InvalidArgumentError(absl::StrCat(path, " is ", value, "; allowed is ", allowed));
}

absl::Status CheckRange(const absl::AlphaNum& path, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return OutOfRange(path, value, absl::StrCat("[", low, ", ", high, "]"));
}

struct DurationRange {
  absl::Duration standard, low, high;
};

// `field` is present when it returns.
absl::Status CompleteDuration(const std::string& path, bool present, const DurationRange& range,
                              google::protobuf::Duration& field) {
  if (!present) field = ToProto(range.standard);
  KVF_ASSIGN_OR_RETURN(const absl::Duration value, ToDuration(path, field));
  if (value >= range.low && value <= range.high) return absl::OkStatus();
  return OutOfRange(path, absl::FormatDuration(value),
                    absl::StrCat("[", absl::FormatDuration(range.low), ", ",
                                 absl::FormatDuration(range.high), "]"));
}

absl::Status CompleteDurations(v1::RouterConfig& config) {
  const bool report = config.has_report_interval();
  KVF_RETURN_IF_ERROR(
      CompleteDuration("report_interval", report,
                       {absl::Milliseconds(250), absl::Milliseconds(10), absl::Seconds(10)},
                       *config.mutable_report_interval()));
  const bool silence = config.has_silence_limit();
  KVF_RETURN_IF_ERROR(
      CompleteDuration("silence_limit", silence,
                       {absl::Milliseconds(1500), absl::Milliseconds(50), absl::Minutes(1)},
                       *config.mutable_silence_limit()));
  const bool stall = config.has_stall_limit();
  KVF_RETURN_IF_ERROR(CompleteDuration("stall_limit", stall,
                                       {absl::Seconds(20), absl::Milliseconds(100), absl::Hours(1)},
                                       *config.mutable_stall_limit()));
  const bool queue = config.has_queue_limit();
  KVF_RETURN_IF_ERROR(CompleteDuration("queue_limit", queue,
                                       {absl::Seconds(60), absl::ZeroDuration(), absl::Hours(24)},
                                       *config.mutable_queue_limit()));
  const absl::Duration interval = *ToDuration("", config.report_interval());
  const absl::Duration limit = *ToDuration("", config.silence_limit());
  if (limit >= 2 * interval) return absl::OkStatus();
  return OutOfRange("silence_limit", absl::FormatDuration(limit), "at least twice report_interval");
}

absl::Status CompleteModel(v1::ModelSource& model) {
  if (model.path().empty()) {
    return OutOfRange("model.path", "empty",
                      "a .gguf file or a Hugging Face directory, e.g. --set model.path=m.gguf");
  }
  if (model.name().empty()) {
    std::filesystem::path path(model.path());
    if (!path.has_filename()) path = path.parent_path();  // "folder/"
    model.set_name(path.extension() == ".gguf" ? path.stem().string() : path.filename().string());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CompleteConfig(v1::RouterConfig& config) {
  if (config.name().empty()) config.set_name("router");
  if (config.listen_address().empty()) config.set_listen_address("127.0.0.1:7300");
  KVF_RETURN_IF_ERROR(CompleteModel(*config.mutable_model()));
  KVF_RETURN_IF_ERROR(CompleteDurations(config));
  if (config.log().level().empty()) config.mutable_log()->set_level("info");
  if (!config.has_max_queued_requests()) config.set_max_queued_requests(1024);
  if (!config.has_max_attempts()) config.set_max_attempts(8);
  if (!config.has_max_message_bytes()) config.set_max_message_bytes(4 << 20);
  KVF_RETURN_IF_ERROR(CheckRange("max_queued_requests", config.max_queued_requests(), 1, 1 << 20));
  KVF_RETURN_IF_ERROR(CheckRange("max_attempts", config.max_attempts(), 1, 1000));
  return CheckRange("max_message_bytes", config.max_message_bytes(), 1024, 1 << 30);
}

}  // namespace kvferry::router
