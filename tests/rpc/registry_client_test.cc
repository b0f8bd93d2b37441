#include "rpc/registry_client.h"

#include <memory>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvferry/v1/registry.grpc.pb.h"
#include "rpc/server.h"
#include "tests/fakes/wait_limit.h"
#include "tests/rpc/rpc_fixture.h"

namespace kvferry::rpc {
namespace {

using ::testing::HasSubstr;

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
        if (registry_.welcome) {
          command_.mutable_welcome()->mutable_report_interval()->set_nanos(20'000'000);
          StartWrite(&command_);
        }
      }
      const absl::MutexLock lock(&registry_.mutex_);
      registry_.joins_ += report_.has_join() ? 1 : 0;
      registry_.loads_ += report_.has_load() ? 1 : 0;
      registry_.leavings_ += report_.has_leaving() ? 1 : 0;
      StartRead(&report_);
    }
    void OnWriteDone(bool) override {
      if (command_.has_welcome() && registry_.second_welcomes-- > 0) {
        StartWrite(&command_);
      } else if (command_.has_welcome() && registry_.drain) {
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
    return mutex_.AwaitWithTimeout(absl::Condition(&there), fakes::kWaitLimit);
  }

  bool refuse = false;
  bool drain = false;
  bool welcome = true;
  int second_welcomes = 0;

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
  EXPECT_TRUE(drained.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  client->Leave();
  EXPECT_TRUE(registry.Await(1, 3, 1));
  client.reset();
}

TEST_F(RpcTest, AWelcomeSaidManyTimesIsOneWelcome) {
  FakeRegistry registry;
  registry.second_welcomes = 20;
  registry.drain = true;
  const auto server = Serve(registry, Role::kRouter);
  absl::Notification drained;
  const auto client = RegistryClient::Start({server->address()}, Of(Role::kDecode), v1::Join(),
                                            {.load = [] { return v1::Load(); },
                                             .command =
                                                 [&](const v1::RouterCommand& command) {
                                                   if (command.has_drain()) drained.Notify();
                                                 }});
  EXPECT_TRUE(drained.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  EXPECT_TRUE(registry.Await(1, 3, 0));
}

TEST_F(RpcTest, ARouterThatDoesNotWelcomeIsTriedAgain) {
  FakeRegistry registry;
  registry.welcome = false;
  const auto server = Serve(registry, Role::kRouter);
  const auto client =
      RegistryClient::Start({server->address()}, Of(Role::kDecode), v1::Join(),
                            {.load = [] { return v1::Load(); }}, absl::Milliseconds(100));
  EXPECT_TRUE(registry.Await(2, 0, 0));
}

TEST_F(RpcTest, AWorkerAttachesAgainWhenTheRouterComesBack) {
  FakeRegistry registry, second;
  auto server = Serve(registry, Role::kRouter);
  const std::string address = server->address();
  const auto client = RegistryClient::Start({address}, Of(Role::kPrefill), v1::Join(),
                                            {.load = [] { return v1::Load(); }});
  ASSERT_TRUE(registry.Await(1, 1, 0));
  server.reset();
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
  ASSERT_TRUE(refused.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  EXPECT_THAT(why, HasSubstr("head_dim"));
}

}  // namespace
}  // namespace kvferry::rpc
