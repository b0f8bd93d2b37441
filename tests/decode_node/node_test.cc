// A prefill and a decode worker in one process, on a loopback network, with models without weights.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "absl/synchronization/notification.h"
#include "common/clock.h"
#include "decode_node/wiring.h"
#include "kvcodec/plan.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/decode.grpc.pb.h"
#include "kvferry/v1/prefill.grpc.pb.h"
#include "prefill_node/wiring.h"
#include "rpc/status.h"
#include "tests/fakes/fake_decode_model.h"
#include "tests/fakes/wait_limit.h"
#include "transport/loopback/loopback_transport.h"

namespace kvferry::decode {
namespace {

using ::testing::HasSubstr;

struct Answer {
  absl::Status status;
  std::int32_t first_token = -1;
  std::vector<v1::GeneratedToken> tokens;
  v1::HandoffStats handoff;
  bool finished = false, stop_token = false;
};

class NodeTest : public ::testing::Test {
 protected:
  NodeTest() {
    const auto factory = [this](Incarnation incarnation, transport::MessageSink* sink,
                                const Clock& clock) {
      return network->CreateTransport({.incarnation = static_cast<std::uint64_t>(incarnation)},
                                      sink, clock);
    };
    v1::DecodeConfig config;
    config.mutable_model()->set_path("fake");
    config.mutable_tls()->set_insecure(true);
    config.set_pool_bytes(std::uint64_t{2} << 20);
    config.set_max_sequences(4);
    auto decode_model = std::make_unique<fakes::FakeDecodeModel>();
    model = decode_model.get();
    node = DecodeNode::Create(config, {.transport = factory, .model = std::move(decode_model)})
               .value();
    v1::PrefillConfig prefill_config;
    prefill_config.mutable_model()->set_path("fake");
    prefill_config.mutable_tls()->set_insecure(true);
    prefill =
        prefill::PrefillNode::Create(
            prefill_config, {.transport = factory, .model = std::make_unique<fakes::FakeModel>()})
            .value();
    const auto channel = grpc::CreateChannel(node->address(), grpc::InsecureChannelCredentials());
    decode_stub = v1::Decode::NewStub(channel);
    admin_stub = v1::Admin::NewStub(channel);
    prefill_stub = v1::Prefill::NewStub(
        grpc::CreateChannel(prefill->address(), grpc::InsecureChannelCredentials()));
  }

  static void SetDeadline(grpc::ClientContext& context) {
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoSeconds(fakes::kWaitLimit));
  }
  v1::GetStateResponse State() {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetStateResponse state;
    EXPECT_TRUE(admin_stub->GetState(&context, {}, &state).ok());
    return state;
  }
  v1::ReserveRequest MakeReserve(std::uint32_t prompt_tokens, std::uint32_t max_new_tokens) {
    v1::ReserveRequest request;
    request.set_prompt_tokens(prompt_tokens);
    request.set_max_new_tokens(max_new_tokens);
    *request.mutable_fingerprint() = State().fingerprint();
    request.set_epoch(1);
    return request;
  }
  absl::StatusOr<v1::Grant> Reserve(const v1::ReserveRequest& request) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::Grant grant;
    const grpc::Status status = decode_stub->Reserve(&context, request, &grant);
    if (!status.ok()) return rpc::FromGrpc(status);
    return grant;
  }
  static v1::RunRequest MakeRun(const v1::Grant& grant, int prompt_tokens, int max_new_tokens) {
    v1::RunRequest request;
    request.set_transfer_id(grant.transfer_id());
    request.set_epoch(grant.epoch());
    for (int i = 0; i < prompt_tokens; ++i) request.add_tokens(i % 1000);
    request.mutable_sampling()->set_seed(1);
    request.set_max_new_tokens(max_new_tokens);
    return request;
  }
  // `until`: cancels when so many tokens are here.
  Answer Run(const v1::RunRequest& request, std::size_t until = SIZE_MAX) {
    grpc::ClientContext context;
    SetDeadline(context);
    const auto reader = decode_stub->Run(&context, request);
    Answer answer;
    v1::TokenEvent event;
    while (reader->Read(&event)) {
      if (event.has_adopted()) {
        answer.first_token = event.adopted().first_token();
        answer.handoff = event.adopted().handoff();
      }
      if (event.has_token()) answer.tokens.push_back(event.token());
      if (event.has_finished()) {
        answer.finished = true;
        answer.stop_token = event.finished().stop_token();
      }
      if (answer.tokens.size() >= until) context.TryCancel();
    }
    answer.status = rpc::FromGrpc(reader->Finish());
    return answer;
  }
  absl::Status RunPrefill(const v1::Grant& grant, int prompt_tokens) {
    v1::PrefillRequest request;
    *request.mutable_grant() = grant;
    for (int i = 0; i < prompt_tokens; ++i) request.add_tokens(i % 1000);
    request.mutable_sampling()->set_seed(1);
    grpc::ClientContext context;
    SetDeadline(context);
    const auto reader = prefill_stub->Run(&context, request);
    v1::PrefillEvent event;
    while (reader->Read(&event)) {
    }
    return rpc::FromGrpc(reader->Finish());
  }
  Answer Serve(int prompt_tokens, int max_new_tokens, std::size_t until = SIZE_MAX) {
    const auto grant = Reserve(MakeReserve(prompt_tokens, max_new_tokens));
    if (!grant.ok()) return {.status = grant.status()};
    auto sent = std::async(std::launch::async, [&] { return RunPrefill(*grant, prompt_tokens); });
    Answer answer = Run(MakeRun(*grant, prompt_tokens, max_new_tokens), until);
    EXPECT_TRUE(sent.get().ok());
    return answer;
  }
  void ExpectAllFree() {
    ASSERT_TRUE(node->WaitIdle(fakes::kWaitLimit));
    const v1::GetStateResponse state = State();
    EXPECT_EQ(state.transfers_size(), 0);
    const v1::PoolState& pool = state.pool();
    EXPECT_EQ(pool.pages_granted() + pool.pages_filled() + pool.pages_published() +
                  pool.pages_quarantined(),
              0u);
    EXPECT_EQ(pool.sequences(), 0u);
    EXPECT_EQ(pool.landing_slots_free(), pool.landing_slots_total());
  }

  std::unique_ptr<transport::LoopbackNetwork> network = transport::LoopbackNetwork::Create();
  fakes::FakeDecodeModel* model = nullptr;  // the node's
  std::unique_ptr<DecodeNode> node;
  std::unique_ptr<prefill::PrefillNode> prefill;
  std::unique_ptr<v1::Decode::Stub> decode_stub;
  std::unique_ptr<v1::Admin::Stub> admin_stub;
  std::unique_ptr<v1::Prefill::Stub> prefill_stub;
};

TEST_F(NodeTest, ServesAPromptOverAHandoff) {
  const Answer answer = Serve(300, 150);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.first_token, 300);
  ASSERT_EQ(answer.tokens.size(), 149u);
  for (std::uint32_t i = 0; i < 149; ++i) {
    EXPECT_EQ(answer.tokens[i].position(), 301 + i);
    EXPECT_EQ(answer.tokens[i].id(), static_cast<int>(301 + i));
  }
  EXPECT_TRUE(answer.finished);
  EXPECT_FALSE(answer.stop_token);
  const codec::Codec codec = codec::FindCodec(codec::kDefaultCodec).value();
  EXPECT_EQ(answer.handoff.payload_bytes(),
            codec::HandoffBytes(300, codec, {.layers = 4, .kv_heads = 2, .head_dim = 64}).value());
  EXPECT_EQ(answer.handoff.transport(), "loopback");
  ExpectAllFree();
}

TEST(NodeDeviceTest, AGpuThatIsNotThereFailsTheStart) {
  v1::DecodeConfig config;
  config.mutable_model()->set_path("fake");
  config.mutable_tls()->set_insecure(true);
  config.mutable_model()->set_device("cuda:127");
  const absl::Status missing = DecodeNode::Create(config, {}).status();
  EXPECT_TRUE(absl::IsUnavailable(missing) || absl::IsUnimplemented(missing)) << missing;
  config.mutable_model()->set_device("gpu");
  const absl::Status wrong = DecodeNode::Create(config, {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(wrong)) << wrong;
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("model.device is \"gpu\""));
}

TEST_F(NodeTest, ServesSeveralAtOnce) {
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 4; ++i) {
    answers.push_back(
        std::async(std::launch::async, [this, i] { return Serve(20 + 100 * i, 60); }));
  }
  for (auto& answer : answers) {
    const Answer one = answer.get();
    EXPECT_TRUE(one.status.ok()) << one.status;
    EXPECT_EQ(one.tokens.size(), 59u);
  }
  ExpectAllFree();
}

TEST_F(NodeTest, ACancelledStreamFreesEverything) {
  const Answer answer = Serve(200, 600, 3);
  EXPECT_TRUE(absl::IsCancelled(answer.status));
  ExpectAllFree();
  EXPECT_TRUE(Serve(200, 20).status.ok());
}

TEST_F(NodeTest, BadReservationsNameTheField) {
  const auto refused = [&](const v1::ReserveRequest& request) { return Reserve(request).status(); };
  v1::ReserveRequest request = MakeReserve(10, 10);
  request.set_codec("kivi-9");
  EXPECT_TRUE(absl::IsNotFound(refused(request)));
  EXPECT_THAT(std::string(refused(request).message()), HasSubstr("kivi-4-g64"));
  request.set_codec("fp16");
  EXPECT_TRUE(absl::IsNotFound(refused(request)));
  request = MakeReserve(10, 10);
  request.mutable_fingerprint()->set_head_dim(128);
  request.mutable_fingerprint()->set_hash(1);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused(request)));
  EXPECT_THAT(std::string(refused(request).message()), HasSubstr("head_dim"));
  request.clear_fingerprint();
  EXPECT_THAT(std::string(refused(request).message()), HasSubstr("fingerprint"));
  request = MakeReserve(10, 10);
  request.set_epoch(0);
  EXPECT_THAT(std::string(refused(request).message()), HasSubstr("epoch"));
  EXPECT_TRUE(absl::IsInvalidArgument(refused(MakeReserve(0, 10))));
  EXPECT_TRUE(absl::IsInvalidArgument(refused(MakeReserve(5000, 10))));
  ExpectAllFree();
}

TEST_F(NodeTest, BadRunsNameTheFieldAndLoseNothing) {
  const v1::Grant grant = Reserve(MakeReserve(10, 10)).value();
  const auto refused = [&](const v1::RunRequest& request, const char* what) {
    const absl::Status status = Run(request).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  };
  refused(MakeRun(grant, 9, 10), "tokens");
  refused(MakeRun(grant, 10, 11), "max_new_tokens");
  refused(MakeRun(grant, 10, 0), "max_new_tokens");
  refused(MakeRun(grant, 0, 10), "tokens");
  v1::RunRequest request = MakeRun(grant, 10, 10);
  request.set_epoch(2);
  refused(request, "epoch");
  request = MakeRun(grant, 10, 10);
  request.set_tokens(3, 1000);
  refused(request, "tokens[3]");
  request = MakeRun(grant, 10, 10);
  request.set_transfer_id("short");
  refused(request, "transfer_id");
  request = MakeRun(grant, 10, 10);
  request.mutable_sampling()->set_top_p(2);
  refused(request, "sampling.top_p");
  request.mutable_sampling()->clear_seed();
  refused(request, "sampling.seed");
  request = MakeRun(grant, 10, 10);
  request.set_transfer_id(TransferId::Random().ToBytes());
  EXPECT_TRUE(absl::IsAborted(Run(request).status));
  // The grant still stands.
  auto sent = std::async(std::launch::async, [&] { return RunPrefill(grant, 10); });
  EXPECT_TRUE(Run(MakeRun(grant, 10, 10)).status.ok());
  EXPECT_TRUE(sent.get().ok());
  ExpectAllFree();
}

TEST_F(NodeTest, AFullWorkerSaysWhenToComeAgain) {
  std::vector<v1::Grant> grants;
  for (int i = 0; i < 4; ++i) grants.push_back(Reserve(MakeReserve(10, 10)).value());
  const absl::Status full = Reserve(MakeReserve(10, 10)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_TRUE(rpc::RetryHint(full).has_value());
  for (const v1::Grant& grant : grants) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ReleaseRequest request;
    request.set_transfer_id(grant.transfer_id());
    request.set_epoch(grant.epoch());
    v1::ReleaseResponse response;
    EXPECT_TRUE(decode_stub->Release(&context, request, &response).ok());
  }
  ExpectAllFree();
}

TEST_F(NodeTest, AGrantThatNobodyUsesEnds) {
  v1::ReserveRequest request = MakeReserve(100, 10);
  request.mutable_lease()->set_nanos(50'000'000);
  const v1::Grant grant = Reserve(request).value();
  ExpectAllFree();
  EXPECT_TRUE(absl::IsAborted(Run(MakeRun(grant, 100, 10)).status));
  EXPECT_FALSE(RunPrefill(grant, 100).ok());
}

TEST_F(NodeTest, DrainingFinishesWhatRuns) {
  const v1::Grant grant = Reserve(MakeReserve(100, 10)).value();
  node->Drain();
  EXPECT_TRUE(absl::IsUnavailable(Reserve(MakeReserve(10, 10)).status()));
  EXPECT_TRUE(State().draining());
  auto sent = std::async(std::launch::async, [&] { return RunPrefill(grant, 100); });
  EXPECT_TRUE(Run(MakeRun(grant, 100, 10)).status.ok());
  EXPECT_TRUE(sent.get().ok());
  ExpectAllFree();
}

TEST_F(NodeTest, ShutdownEndsStreams) {
  absl::Notification started;
  model->before_decode_layer = [&](int, std::size_t) {
    if (!started.HasBeenNotified()) started.Notify();
    return absl::OkStatus();
  };
  const v1::Grant grant = Reserve(MakeReserve(100, 1500)).value();
  // Whether prefill still hears of the adoption is a matter of luck.
  auto sent = std::async(std::launch::async, [&] { (void)RunPrefill(grant, 100); });
  auto answer = std::async(std::launch::async, [&] { return Run(MakeRun(grant, 100, 1500)); });
  ASSERT_TRUE(started.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  node->Shutdown();
  EXPECT_TRUE(absl::IsUnavailable(answer.get().status));
  node->Shutdown();
}

}  // namespace
}  // namespace kvferry::decode
