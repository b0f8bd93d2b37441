#include "rpc/server.h"

#include <arpa/inet.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>
#include <netinet/in.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace kvferry::rpc {
namespace {

constexpr int kKeepaliveIntervalMs = 2000;
constexpr int kKeepaliveTimeoutMs = 2000;
constexpr int kMinPingIntervalMs = 1000;

// By number, since a name such as 127.example.com may be anywhere.
bool IsLoopback(const std::string& host) {
  in_addr address{};
  if (inet_pton(AF_INET, host.c_str(), &address) == 1) {
    return ntohl(address.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  return host == "localhost" || host == "[::1]";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const Credentials& credentials,
                                                      std::span<grpc::Service* const> services) {
  const std::size_t colon = options.listen_address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == options.listen_address.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen_address: '", options.listen_address, "' is not host:port"));
  }
  const std::string host = options.listen_address.substr(0, colon);
  if (credentials.insecure() && !IsLoopback(host)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "listen_address: '", options.listen_address,
        "' is not a loopback address and TLS is off; set tls.* or listen on 127.0.0.1"));
  }
  grpc::EnableDefaultHealthCheckService(true);
  static const bool reflection = [] {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)reflection;

  int port = 0;
  grpc::ServerBuilder builder;
  // A port in use is an error, not a second listener on it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.AddListeningPort(options.listen_address, credentials.ForServer(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<Server> server(new Server());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("listen_address: cannot listen on '", options.listen_address,
                     "'; is the port in use, or the certificate and key no pair?"));
  }
  server->address_ = absl::StrCat(host, ":", port);
  return server;
}

Server::~Server() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

void Server::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

void Server::Shutdown(absl::Duration grace) {
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
  server_->Wait();
}

}  // namespace kvferry::rpc
