#include "router/config.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "rpc/config_checks.h"
#include "rpc/convert.h"

namespace kvferry::router {
namespace {

struct DurationRange {
  absl::Duration standard, low, high;
};

// `field` is present when it returns.
absl::Status CompleteDuration(const std::string& path, bool present, const DurationRange& range,
                              google::protobuf::Duration& field) {
  if (!present) field = rpc::ToProto(range.standard);
  return rpc::CheckDuration(path, range.low, range.high, field);
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
  const absl::Duration interval = *rpc::ToDuration("", config.report_interval());
  const absl::Duration limit = *rpc::ToDuration("", config.silence_limit());
  if (limit >= 2 * interval) return absl::OkStatus();
  return rpc::OutOfRange("silence_limit", absl::FormatDuration(limit),
                         "at least twice report_interval");
}

}  // namespace

absl::Status CompleteConfig(v1::RouterConfig& config) {
  if (config.name().empty()) config.set_name("router");
  if (config.listen_address().empty()) config.set_listen_address("127.0.0.1:7300");
  KVF_RETURN_IF_ERROR(rpc::CompleteModelPath(*config.mutable_model()));
  KVF_RETURN_IF_ERROR(CompleteDurations(config));
  if (config.log().level().empty()) config.mutable_log()->set_level("info");
  if (!config.has_max_queued_requests()) config.set_max_queued_requests(1024);
  if (!config.has_max_attempts()) config.set_max_attempts(8);
  if (!config.has_max_message_bytes()) config.set_max_message_bytes(4 << 20);
  KVF_RETURN_IF_ERROR(
      rpc::CheckRange("max_queued_requests", config.max_queued_requests(), 1, 1 << 20));
  KVF_RETURN_IF_ERROR(rpc::CheckRange("max_attempts", config.max_attempts(), 1, 1000));
  return rpc::CheckRange("max_message_bytes", config.max_message_bytes(), 1024, 1 << 30);
}

}  // namespace kvferry::router
