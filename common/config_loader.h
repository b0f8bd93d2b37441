#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"

namespace google::protobuf {
class Message;
}

namespace kvferry {

// Reads a textproto file into `config`. Errors name file, line and field.
absl::Status LoadConfigFile(const std::string& path, google::protobuf::Message* config);
// Applies "path=value" settings, e.g. "worker.listen_address=127.0.0.1:0", "transport.ucx.TLS=tcp",
// "worker.router_addresses+=h:1". kInvalidArgument names path, value and what is allowed (the
// field's type, or the fields that exist at that level).
absl::Status ApplySettings(std::span<const std::string> settings,
                           google::protobuf::Message* config);
std::string PrintConfig(const google::protobuf::Message& config);

}  // namespace kvferry
