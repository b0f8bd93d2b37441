#include "rpc/server.h"

#include <arpa/inet.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/credentials.h"
#include "rpc/fingerprint.h"
#include "rpc/status.h"
#include "tests/fakes/wait_limit.h"
#include "tests/rpc/rpc_fixture.h"

namespace kvferry::rpc {
namespace {

using ::testing::HasSubstr;

// Answers GetState to routers and clients only, and Drain with a retry hint.
class GuardedAdmin : public v1::Admin::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest*,
                                     v1::GetStateResponse* state) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    state->set_name("guarded");
    reactor->Finish(ToGrpc(CheckCaller(*context, {Role::kRouter, Role::kClient})));
    return reactor;
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    absl::Status status = absl::ResourceExhaustedError("no pages");
    SetRetryHint(status, absl::Milliseconds(1250));
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
};

absl::Status GetState(const Credentials& credentials, const std::string& address, Role peer) {
  const auto stub = v1::Admin::NewStub(credentials.Connect(address, peer));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(fakes::kWaitLimit));
  v1::GetStateResponse state;
  return FromGrpc(stub->GetState(&context, {}, &state));
}

// One unary call of a method by its path, messages as bytes.
std::pair<grpc::StatusCode, std::string> CallBytes(const std::shared_ptr<grpc::Channel>& channel,
                                                   const std::string& method,
                                                   const std::string& message) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(fakes::kWaitLimit));
  grpc::Slice slice(message);
  grpc::ByteBuffer request(&slice, 1), response;
  absl::Notification done;
  grpc::Status status;
  stub.UnaryCall(&context, method, {}, &request, &response, [&](grpc::Status result) {
    status = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  grpc::Slice answer;
  if (status.ok()) {
    EXPECT_TRUE(response.DumpToSingleSlice(&answer).ok());
  }
  return {status.error_code(),
          std::string(reinterpret_cast<const char*>(answer.begin()), answer.size())};
}

TEST_F(RpcTest, TheRightRoleGetsInAndAWrongOneDoesNot) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kDecode);
  EXPECT_TRUE(GetState(Of(Role::kRouter), server->address(), Role::kDecode).ok());
  EXPECT_TRUE(GetState(Of(Role::kClient), server->address(), Role::kDecode).ok());
  const absl::Status wrong = GetState(Of(Role::kPrefill), server->address(), Role::kDecode);
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("kvferry-prefill"));
}

TEST_F(RpcTest, ACallerDemandsThePeersRole) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kPrefill);
  EXPECT_EQ(GetState(Of(Role::kRouter), server->address(), Role::kDecode).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(RpcTest, PlainTextForeignAuthoritiesAndRandomBytesAreRefusedAndHarmless) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kDecode);
  v1::TlsConfig insecure;
  insecure.set_insecure(true);
  EXPECT_FALSE(
      GetState(Credentials::Load(insecure).value(), server->address(), Role::kDecode).ok());
  const std::string other = folder_ + "/other";
  ASSERT_TRUE(MakeCertificates(other).ok());
  v1::TlsConfig foreign;
  SetCertificateFiles(other, Role::kRouter, foreign);
  EXPECT_FALSE(GetState(Credentials::Load(foreign).value(), server->address(), Role::kDecode).ok());

  std::mt19937 random(3);
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(server->address().substr(server->address().rfind(':') + 1), &port));
  for (int i = 0; i < 8; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{.sin_family = AF_INET,
                        .sin_port = htons(static_cast<std::uint16_t>(port)),
                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    std::string noise(4096, '\0');
    for (char& c : noise) c = static_cast<char>(random());
    EXPECT_GT(send(fd, noise.data(), noise.size(), MSG_NOSIGNAL), 0);
    close(fd);
  }
  EXPECT_TRUE(GetState(Of(Role::kRouter), server->address(), Role::kDecode).ok());
}

TEST_F(RpcTest, ACallerWithoutACertificateIsRefused) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kDecode);
  std::ifstream file(folder_ + "/ca.crt");
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = std::string(std::istreambuf_iterator<char>(file), {});
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(std::string(RoleName(Role::kDecode)));
  const auto stub = v1::Admin::NewStub(
      grpc::CreateCustomChannel(server->address(), grpc::SslCredentials(options), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(fakes::kWaitLimit));
  v1::GetStateResponse state;
  EXPECT_FALSE(stub->GetState(&context, {}, &state).ok());
  EXPECT_EQ(state.name(), "");
}

TEST_F(RpcTest, AMessageAboveTheLimitIsRefusedAndTheNextOneIsServed) {
  GuardedAdmin admin;
  const std::array<grpc::Service*, 1> services = {&admin};
  const auto server = Server::Start({.listen_address = "127.0.0.1:0", .max_message_bytes = 1000},
                                    Of(Role::kDecode), services)
                          .value();
  const auto channel = Of(Role::kRouter).Connect(server->address(), Role::kDecode);
  const auto [code, answer] =
      CallBytes(channel, "/kvferry.v1.Admin/GetState", std::string(2000, 'x'));
  EXPECT_EQ(code, grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(GetState(Of(Role::kRouter), server->address(), Role::kDecode).ok());
}

TEST_F(RpcTest, HealthFollowsSetServing) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kDecode);
  const auto channel = Of(Role::kRouter).Connect(server->address(), Role::kDecode);
  // HealthCheckResponse.status is field 1: SERVING is 1, NOT_SERVING is 2.
  using Answer = std::pair<grpc::StatusCode, std::string>;
  EXPECT_EQ(CallBytes(channel, "/grpc.health.v1.Health/Check", ""),
            Answer(grpc::StatusCode::OK, "\x08\x01"));
  server->SetServing(false);
  EXPECT_EQ(CallBytes(channel, "/grpc.health.v1.Health/Check", ""),
            Answer(grpc::StatusCode::OK, "\x08\x02"));
}

TEST_F(RpcTest, TheRetryHintSurvivesTheWire) {
  GuardedAdmin admin;
  const auto server = Serve(admin, Role::kDecode);
  const auto stub = v1::Admin::NewStub(Of(Role::kRouter).Connect(server->address(), Role::kDecode));
  grpc::ClientContext context;
  v1::DrainResponse response;
  const absl::Status status = FromGrpc(stub->Drain(&context, {}, &response));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryHint(status), absl::Milliseconds(1250));
  EXPECT_EQ(RetryHint(absl::InternalError("none")), std::nullopt);
}

TEST_F(RpcTest, APortInUseAndABareAddressAreErrorsThatNameIt) {
  GuardedAdmin admin, second;
  const auto server = Serve(admin, Role::kDecode);
  const std::array<grpc::Service*, 1> services = {&second};
  const auto taken =
      Server::Start({.listen_address = server->address()}, Of(Role::kDecode), services);
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr(server->address()));
  v1::TlsConfig insecure;
  insecure.set_insecure(true);
  for (const char* address : {"0.0.0.0:0", "127.example.com:0", "[::]:0", "10.0.0.1:0"}) {
    const auto open =
        Server::Start({.listen_address = address}, Credentials::Load(insecure).value(), services);
    EXPECT_EQ(open.status().code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(open.status().message()), HasSubstr("TLS is off")) << address;
  }
  EXPECT_EQ(
      Server::Start({.listen_address = "nohost"}, Of(Role::kDecode), services).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(RpcTest, CertificateFilesThatAreMissingOrNoCertificatesAreNamed) {
  v1::TlsConfig tls;
  EXPECT_THAT(std::string(Credentials::Load(tls).status().message()), HasSubstr("tls.ca_file"));
  SetCertificateFiles("/nonexistent", Role::kRouter, tls);
  EXPECT_EQ(Credentials::Load(tls).status().code(), absl::StatusCode::kNotFound);
}

TEST(Fingerprints, TheDifferenceNamesEveryField) {
  v1::Fingerprint here;
  here.set_head_dim(64);
  here.set_layers(30);
  SealFingerprint(here);
  v1::Fingerprint there = here;
  EXPECT_TRUE(CompareFingerprints(here, there).ok());
  there.set_head_dim(128);
  there.set_weights_hash(7);
  SealFingerprint(there);
  const absl::Status status = CompareFingerprints(here, there);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head_dim: here 64, there 128"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("weights_hash"));
}

}  // namespace
}  // namespace kvferry::rpc
