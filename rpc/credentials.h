#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/security/server_credentials.h>

#include <initializer_list>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rpc/role.h"

namespace kvferry::v1 {
class TlsConfig;
}

namespace kvferry::rpc {

// The certificates of one process, read once. Immutable. Thread: any.
class Credentials {
 public:
  // kNotFound / kInvalidArgument name the file; `insecure` gives plain text and logs a warning.
  static absl::StatusOr<Credentials> Load(const v1::TlsConfig& config);

  bool insecure() const { return insecure_; }
  std::shared_ptr<grpc::ServerCredentials> ForServer() const;
  // A channel that accepts only a peer whose certificate carries `peer`'s name. Keepalive on,
  // message size limited.
  std::shared_ptr<grpc::Channel> Connect(const std::string& address, Role peer) const;

 private:
  bool insecure_ = false;
  std::string ca_, cert_, key_;
};

// OK when the caller's certificate has one of `allowed` roles, or when the server runs without TLS.
// kPermissionDenied otherwise.
absl::Status CheckCaller(const grpc::ServerContextBase& context,
                         std::initializer_list<Role> allowed);

}  // namespace kvferry::rpc
