#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kvferry/v1/config.pb.h"

// The parts of a configuration that several programs have in common. Complete... fills absent
// fields with the defaults of config.proto and checks all; every error is kInvalidArgument and
// names path, value and what is allowed.
namespace kvferry::rpc {

absl::Status OutOfRange(const absl::AlphaNum& path, const absl::AlphaNum& value,
                        const absl::AlphaNum& allowed);
absl::Status CheckRange(const absl::AlphaNum& path, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high);
absl::Status CheckDuration(const std::string& path, absl::Duration low, absl::Duration high,
                           const google::protobuf::Duration& field);

// path and name: what every role needs.
absl::Status CompleteModelPath(v1::ModelSource& model);
// What a worker computes with, too.
absl::Status CompleteModel(v1::ModelSource& model);
absl::Status CompleteTransport(v1::TransportConfig& transport);
// `role` starts the default name.
absl::Status CompleteWorker(std::string_view role, v1::WorkerConfig& worker);

}  // namespace kvferry::rpc
