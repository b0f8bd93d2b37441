#include "rpc/credentials.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvferry/v1/config.pb.h"

namespace kvferry::rpc {
namespace {

constexpr int kKeepaliveIntervalMs = 2000;
constexpr int kKeepaliveTimeoutMs = 2000;
constexpr int kMinReconnectMs = 100;
constexpr int kMaxReconnectMs = 1000;
constexpr int kMaxReplyBytes = 16 << 20;

absl::StatusOr<std::string> ReadFile(const char* field, const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " is not set: give the certificate files, or say tls.insecure = true on loopback"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(field, ": cannot read '", path, "'"));
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.find("-----BEGIN") == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": '", path, "' is not a PEM file"));
  }
  return text;
}

}  // namespace

absl::StatusOr<Credentials> Credentials::Load(const v1::TlsConfig& config) {
  Credentials credentials;
  if (config.insecure()) {
    credentials.insecure_ = true;
    Log(LogLevel::kWarning, "tls_off",
        {{"why", "tls.insecure is set: anyone who reaches the port may call"}});
    return credentials;
  }
  KVF_ASSIGN_OR_RETURN(credentials.ca_, ReadFile("tls.ca_file", config.ca_file()));
  KVF_ASSIGN_OR_RETURN(credentials.cert_, ReadFile("tls.cert_file", config.cert_file()));
  KVF_ASSIGN_OR_RETURN(credentials.key_, ReadFile("tls.key_file", config.key_file()));
  return credentials;
}

std::shared_ptr<grpc::ServerCredentials> Credentials::ForServer() const {
  if (insecure_) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = ca_;
  options.pem_key_cert_pairs.push_back({key_, cert_});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::Channel> Credentials::Connect(const std::string& address, Role peer) const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveIntervalMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMinReconnectMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  // A channel of its own for each peer: a lost one must not take another's connection down with it.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxReplyBytes);
  if (insecure_)
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  arguments.SetSslTargetNameOverride(std::string(RoleName(peer)));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ca_;
  options.pem_cert_chain = cert_;
  options.pem_private_key = key_;
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(options), arguments);
}

absl::Status CheckCaller(const grpc::ServerContextBase& context,
                         std::initializer_list<Role> allowed) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) {
    // Only a server that was started without TLS has callers without a certificate.
    if (auth == nullptr || auth->FindPropertyValues("transport_security_type").empty() ||
        auth->FindPropertyValues("transport_security_type").front() != "ssl") {
      return absl::OkStatus();
    }
    return absl::UnauthenticatedError("the caller has no certificate");
  }
  std::vector<std::string> names;
  for (const grpc::string_ref& name : auth->FindPropertyValues("x509_common_name"))
    names.emplace_back(name.data(), name.size());
  std::vector<std::string> wanted;
  for (const Role role : allowed) {
    const std::string name(RoleName(role));
    if (std::find(names.begin(), names.end(), name) != names.end()) return absl::OkStatus();
    wanted.push_back(name);
  }
  return absl::PermissionDeniedError(
      absl::StrCat("this method is for ", absl::StrJoin(wanted, ", "),
                   ", the caller's certificate is of '", absl::StrJoin(names, ", "), "'"));
}

}  // namespace kvferry::rpc
