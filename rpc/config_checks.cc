#include "rpc/config_checks.h"

#include <unistd.h>

#include <filesystem>

#include "common/device_name.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "rpc/convert.h"

namespace kvferry::rpc {

absl::Status OutOfRange(const absl::AlphaNum& path, const absl::AlphaNum& value,
                        const absl::AlphaNum& allowed) {
  return absl::InvalidArgumentError(absl::StrCat(path, " is ", value, "; allowed is ", allowed));
}

absl::Status CheckRange(const absl::AlphaNum& path, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return OutOfRange(path, value, absl::StrCat("[", low, ", ", high, "]"));
}

absl::Status CheckDuration(const std::string& path, absl::Duration low, absl::Duration high,
                           const google::protobuf::Duration& field) {
  KVF_ASSIGN_OR_RETURN(const absl::Duration value, ToDuration(path, field));
  if (value >= low && value <= high) return absl::OkStatus();
  return OutOfRange(
      path, absl::FormatDuration(value),
      absl::StrCat("[", absl::FormatDuration(low), ", ", absl::FormatDuration(high), "]"));
}

absl::Status CompleteTransport(v1::TransportConfig& transport) {
  if (transport.ucx().empty()) {
    auto& ucx = *transport.mutable_ucx();
    ucx["TLS"] = "tcp";
    ucx["TCP_TX_SEG_SIZE"] = "256k";
    ucx["TCP_RX_SEG_SIZE"] = "256k";
  }
  if (!transport.has_heartbeat_interval()) {
    *transport.mutable_heartbeat_interval() = ToProto(absl::Milliseconds(250));
  }
  if (!transport.has_silence_limit()) {
    *transport.mutable_silence_limit() = ToProto(absl::Milliseconds(1500));
  }
  if (!transport.has_progress_limit()) {
    *transport.mutable_progress_limit() = ToProto(absl::Seconds(10));
  }
  if (!transport.has_rate_limit_bytes_per_s()) transport.set_rate_limit_bytes_per_s(0);
  if (transport.memory().empty()) transport.set_memory("host");
  if (transport.memory() != "host" && transport.memory() != "cuda") {
    return OutOfRange("transport.memory", transport.memory(), "\"host\" or \"cuda\"");
  }
  KVF_RETURN_IF_ERROR(CheckDuration("transport.heartbeat_interval", absl::Milliseconds(10),
                                    absl::Seconds(10), transport.heartbeat_interval()));
  KVF_RETURN_IF_ERROR(CheckDuration("transport.silence_limit", absl::Milliseconds(50),
                                    absl::Seconds(60), transport.silence_limit()));
  KVF_RETURN_IF_ERROR(CheckDuration("transport.progress_limit", absl::Milliseconds(100),
                                    absl::Seconds(600), transport.progress_limit()));
  KVF_ASSIGN_OR_RETURN(const absl::Duration heartbeat,
                       ToDuration("transport.heartbeat_interval", transport.heartbeat_interval()));
  KVF_ASSIGN_OR_RETURN(const absl::Duration silence,
                       ToDuration("transport.silence_limit", transport.silence_limit()));
  if (silence < 2 * heartbeat) {
    return OutOfRange("transport.silence_limit", absl::FormatDuration(silence),
                      "at least twice transport.heartbeat_interval");
  }
  return absl::OkStatus();
}

absl::Status CompleteWorker(std::string_view role, v1::WorkerConfig& worker) {
  if (worker.name().empty()) worker.set_name(absl::StrCat(ToAbsl(role), "-", getpid()));
  if (worker.listen_address().empty()) worker.set_listen_address("127.0.0.1:0");
  for (int i = 0; i < worker.router_addresses_size(); ++i) {
    if (worker.router_addresses(i).empty()) {
      return OutOfRange(absl::StrCat("worker.router_addresses[", i, "]"), "empty", "host:port");
    }
  }
  return absl::OkStatus();
}

absl::Status CompleteModelPath(v1::ModelSource& model) {
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

absl::Status CompleteModel(v1::ModelSource& model) {
  KVF_RETURN_IF_ERROR(CompleteModelPath(model));
  if (model.compute().empty()) model.set_compute("fp32");
  if (model.compute() != "fp32" && model.compute() != "bf16") {
    return OutOfRange("model.compute", absl::StrCat("\"", model.compute(), "\""),
                      "\"fp32\" or \"bf16\"");
  }
  if (model.device().empty()) model.set_device("cpu");
  if (const absl::Status device = GpuOrdinal(model.device()).status(); !device.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("model.", device.message()));
  }
  return CheckRange("model.threads", model.threads(), 0, 1024);
}

}  // namespace kvferry::rpc
