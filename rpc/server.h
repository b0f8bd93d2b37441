#pragma once

#include <grpcpp/server.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "rpc/credentials.h"

namespace kvferry::rpc {

struct ServerOptions {
  std::string listen_address;  // host:port; port 0 takes a free one
  std::size_t max_message_bytes = 4 << 20;
};

// A listening gRPC server with health and reflection. Owns neither the services nor their state:
// they outlive it.
class Server {
 public:
  // kInvalidArgument: address, or a non-loopback address without TLS. kUnavailable: the port is in
  // use (names it).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const Credentials& credentials,
                                                       std::span<grpc::Service* const> services);
  ~Server();

  // With the real port.
  const std::string& address() const { return address_; }
  void SetServing(bool serving);  // grpc.health.v1
  // Refuses new calls, lets running ones end for up to `grace`, then cancels them.
  void Shutdown(absl::Duration grace);

 private:
  Server() = default;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace kvferry::rpc
