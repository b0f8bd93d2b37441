#include <arpa/inet.h>
#include <grpcpp/client_context.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/config.pb.h"
#include "kvferry/v1/registry.grpc.pb.h"
#include "rpc/certificates.h"
#include "rpc/credentials.h"
#include "rpc/fingerprint.h"
#include "rpc/registry_client.h"
#include "rpc/server.h"
#include "rpc/status.h"

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

class RpcTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    char folder[] = "/tmp/kvferry-rpc.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    ASSERT_TRUE(MakeCertificates(folder_).ok());
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }

  static Credentials Of(Role role) {
    v1::TlsConfig tls;
    SetCertificateFiles(folder_, role, tls);
    return Credentials::Load(tls).value();
  }
  static std::unique_ptr<Server> Serve(grpc::Service& service, Role role,
                                       const std::string& address = "127.0.0.1:0") {
    const std::array<grpc::Service*, 1> services = {&service};
    auto server = Server::Start({.listen_address = address}, Of(role), services);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  static absl::Status GetState(const Credentials& credentials, const std::string& address,
                               Role peer) {
    const auto stub = v1::Admin::NewStub(credentials.Connect(address, peer));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(3));
    v1::GetStateResponse state;
    return FromGrpc(stub->GetState(&context, {}, &state));
  }

  static std::string folder_;
};

std::string RpcTest::folder_;

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
  const auto open =
      Server::Start({.listen_address = "0.0.0.0:0"}, Credentials::Load(insecure).value(), services);
  EXPECT_EQ(open.status().code(), absl::StatusCode::kInvalidArgument);
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

// A router that welcomes workers and remembers what they say.
class FakeRegistry : public v1::Registry::CallbackService {
 public:
  class Stream : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterCommand> {
   public:
    explicit Stream(FakeRegistry& registry) : registry_(registry) { StartRead(&report_); }
    void OnReadDone(bool ok) override {
      if (!ok) {
        Finish(grpc::Status::OK);
        return;
      }
      if (report_.has_join()) {
        if (registry_.refuse) {
          Finish(
              grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "head_dim: here 64, there 128"));
          return;
        }
        command_.mutable_welcome()->mutable_report_interval()->set_nanos(20'000'000);
        StartWrite(&command_);
      }
      const absl::MutexLock lock(&registry_.mutex_);
      registry_.joins_ += report_.has_join() ? 1 : 0;
      registry_.loads_ += report_.has_load() ? 1 : 0;
      registry_.leavings_ += report_.has_leaving() ? 1 : 0;
      StartRead(&report_);
    }
    void OnWriteDone(bool) override {
      if (command_.has_welcome() && registry_.drain) {
        command_.mutable_drain();
        StartWrite(&command_);
      }
    }
    void OnDone() override { delete this; }

   private:
    FakeRegistry& registry_;
    v1::WorkerReport report_;
    v1::RouterCommand command_;
  };
  grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterCommand>* Attach(
      grpc::CallbackServerContext*) override {
    return new Stream(*this);
  }

  bool Await(int joins, int loads, int leavings) {
    const absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return joins_ >= joins && loads_ >= loads && leavings_ >= leavings;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(10));
  }

  bool refuse = false;
  bool drain = false;

 private:
  absl::Mutex mutex_;
  int joins_ ABSL_GUARDED_BY(mutex_) = 0, loads_ ABSL_GUARDED_BY(mutex_) = 0,
             leavings_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST_F(RpcTest, AWorkerJoinsReportsTakesCommandsAndLeaves) {
  FakeRegistry registry;
  registry.drain = true;
  const auto server = Serve(registry, Role::kRouter);
  absl::Notification drained;
  auto client = RegistryClient::Start({server->address()}, Of(Role::kDecode), v1::Join(),
                                      {.load = [] { return v1::Load(); },
                                       .command =
                                           [&](const v1::RouterCommand& command) {
                                             if (command.has_drain()) drained.Notify();
                                           }});
  EXPECT_TRUE(registry.Await(1, 3, 0));
  EXPECT_TRUE(drained.WaitForNotificationWithTimeout(absl::Seconds(10)));
  client->Leave();
  EXPECT_TRUE(registry.Await(1, 3, 1));
  client.reset();
}

TEST_F(RpcTest, AWorkerAttachesAgainWhenTheRouterComesBack) {
  FakeRegistry registry;
  auto server = Serve(registry, Role::kRouter);
  const std::string address = server->address();
  const auto client = RegistryClient::Start({address}, Of(Role::kPrefill), v1::Join(),
                                            {.load = [] { return v1::Load(); }});
  ASSERT_TRUE(registry.Await(1, 1, 0));
  server.reset();
  FakeRegistry second;
  server = Serve(second, Role::kRouter, address);
  EXPECT_TRUE(second.Await(1, 1, 0));
}

TEST_F(RpcTest, ARefusedFingerprintIsReportedWithItsDifference) {
  FakeRegistry registry;
  registry.refuse = true;
  const auto server = Serve(registry, Role::kRouter);
  absl::Notification refused;
  std::string why;
  const auto client =
      RegistryClient::Start({server->address()}, Of(Role::kDecode), v1::Join(),
                            {.load = [] { return v1::Load(); },
                             .refused =
                                 [&](const std::string&, const absl::Status& status) {
                                   why = std::string(status.message());
                                   refused.Notify();
                                 }});
  ASSERT_TRUE(refused.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_THAT(why, HasSubstr("head_dim"));
}

}  // namespace
}  // namespace kvferry::rpc
