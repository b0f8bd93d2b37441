// A whole router behind its gRPC services: answers, queue, cancel, operators.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include "tests/router/node_fixture.h"

namespace kvferry::router {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class NodeTest : public NodeFixture {
 protected:
  void SetUp() override { StartRouter(); }
  // Tokens up to and with this message.
  static std::uint32_t Seen(const v1::GenerateEvent& event) {
    return event.has_tokens() ? event.tokens().first_index() + event.tokens().ids_size() : 0;
  }
};

TEST_F(NodeTest, StreamsAnAnswer) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  v1::GenerateRequest request = Request(8);
  request.set_request_id("mine");
  request.mutable_sampling()->set_seed(5);
  const Answer answer = Generate(request);
  ExpectTrue(answer, 8);
  EXPECT_FALSE(answer.text.empty());
  EXPECT_EQ(answer.started.request_id(), "mine");
  EXPECT_EQ(answer.started.model(), "demo");
  EXPECT_EQ(answer.started.codec(), "fp16");
  EXPECT_EQ(answer.started.prompt_tokens(), 3u);
  EXPECT_EQ(answer.started.seed(), 5u);
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.finished.completion_tokens(), 8u);
  EXPECT_EQ(answer.finished.attempts(), 1u);
  EXPECT_EQ(answer.finished.prefill_worker(), "p0");
  EXPECT_EQ(answer.finished.decode_worker(), "d0");
  EXPECT_EQ(answer.finished.handoff().prompt_tokens(), 3u);
  const v1::RunRequest run = decode->run_requests().front();
  EXPECT_EQ(run.penalty_from(), 3u);
  EXPECT_EQ(run.sampling().seed(), 5u);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(NodeTest, OneTokenAndManyStreams) {
  const auto decode = Decode("d0");
  const auto decode1 = Decode("d1");
  const auto prefill = Prefill("p0");
  AwaitWorkers(3);
  ExpectTrue(Generate(Request(1)), 1);
  for (int i = 0; i < 64; ++i) GenerateSoon(Request(20));
  JoinClients();
  for (const auto& answer : answers_) ExpectTrue(*answer, 20);
  EXPECT_GT(decode->runs(), 10);
  EXPECT_GT(decode1->runs(), 10);
  EXPECT_TRUE(Eventually([&] { return decode->held() + decode1->held() == 0; }));
}

TEST_F(NodeTest, AnAnswerOfTheFirstTokenAloneSaysThatThereWasNoHandOff) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  prefill->hang_before_commit = true;
  v1::GenerateRequest stopped = Request(5);
  stopped.add_stop_tokens(fakes::TokenAt(kPromptTokens));
  for (const v1::GenerateRequest& request : {Request(1), stopped}) {
    const Answer answer = Generate(request);
    ExpectTrue(answer, 1);
    const v1::HandoffStats& handoff = answer.finished.handoff();
    EXPECT_FALSE(handoff.adopted());
    EXPECT_FALSE(handoff.has_exposed_time());
    EXPECT_EQ(handoff.prompt_tokens(), 3u);
    EXPECT_EQ(handoff.payload_bytes(), fakes::kFirstTokenBytes);
    EXPECT_EQ(handoff.transport(), "fake");
  }
  prefill->hang_before_commit = false;
  const v1::HandoffStats handoff = Generate(Request(5)).finished.handoff();
  EXPECT_TRUE(handoff.adopted());
  EXPECT_EQ(handoff.payload_bytes(), fakes::kPayloadBytes);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(NodeTest, StopStringAndStopToken) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  const Answer whole = Generate(Request(30));
  ASSERT_GT(whole.text.size(), 20u);
  v1::GenerateRequest request = Request(30);
  const std::string stop = whole.text.substr(10, 5);
  request.add_stop(stop);
  const Answer cut = Generate(request);
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(cut.finished.reason(), v1::FINISH_REASON_STOP);
  request = Request(30);
  request.add_stop_tokens(fakes::TokenAt(kPromptTokens + 4));
  const Answer token = Generate(request);
  EXPECT_EQ(token.ids.size(), 5u);
  EXPECT_EQ(token.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(NodeTest, WaitsForWorkersToJoin) {
  Answer& answer = GenerateSoon(Request(5));
  ASSERT_TRUE(Eventually([&] { return State().queued_requests() == 1; }));
  const auto decode = Decode("d0");
  AwaitWorkers(1);
  EXPECT_EQ(State().queued_requests(), 1u);
  const auto prefill = Prefill("p0");
  JoinClients();
  ExpectTrue(answer, 5);
}

TEST_F(NodeTest, ClientThatGoesAwayFreesEverythingAtAnyState) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  const auto all_free = [&] {
    return decode->held() == 0 && prefill->running() == 0 && State().running_requests() == 0;
  };
  prefill->hang_before_first_token = true;
  EXPECT_EQ(Generate(Request(50), [](const auto&) { return false; }).status.code(),
            absl::StatusCode::kCancelled);
  EXPECT_TRUE(Eventually(all_free));
  prefill->hang_before_first_token = false;
  prefill->hang_before_commit = true;
  Generate(Request(50), [](const auto& event) { return !event.has_tokens(); });
  EXPECT_TRUE(Eventually(all_free));
  prefill->hang_before_commit = false;
  decode->token_limit = 5;
  const Answer answer = Generate(Request(50), [](const auto& event) { return Seen(event) < 6; });
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Eventually(all_free));
}

TEST_F(NodeTest, AGrantThatComesAfterTheClientHasGoneIsReleased) {
  std::atomic<bool> go = false;
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  decode->on_reserve = [&] {
    Eventually([&] { return go.load(); });
    return grpc::Status::OK;
  };
  AwaitWorkers(2);
  const Answer answer = Generate(Request(5), {}, absl::Milliseconds(100));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Eventually([&] { return State().running_requests() == 0; }));
  go = true;
  EXPECT_TRUE(Eventually([&] { return decode->reservations() == 1 && decode->held() == 0; }));
  EXPECT_EQ(decode->runs(), 0);
}

TEST_F(NodeTest, CancelById) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 4;
  v1::GenerateRequest request = Request(50);
  request.set_request_id("r1");
  const Answer answer = Generate(request, [&](const auto& event) {
    if (Seen(event) < 5) return true;
    grpc::ClientContext context;
    v1::CancelRequest cancel;
    cancel.set_request_id("r1");
    v1::CancelResponse response;
    EXPECT_TRUE(inference_->Cancel(&context, cancel, &response).ok());
    return true;
  });
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.finished.reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
  grpc::ClientContext context;
  v1::CancelRequest gone;
  gone.set_request_id("r1");
  v1::CancelResponse response;
  EXPECT_TRUE(inference_->Cancel(&context, gone, &response).ok());
}

TEST_F(NodeTest, ASlowReaderGetsEveryTokenInFewerMessages) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  constexpr int kTokens = 6000;
  bool first = true;
  const Answer answer = Generate(Request(kTokens), [&](const auto& event) {
    // Reads nothing until the router has all tokens: what does not fit into the connection waits.
    if (event.has_tokens() && std::exchange(first, false)) {
      EXPECT_TRUE(Eventually([&] { return State().running_requests() == 0; }));
    }
    return true;
  });
  ExpectTrue(answer, kTokens);
  EXPECT_LT(answer.messages, kTokens);
}

TEST_F(NodeTest, ARequestIdMayRunOnce) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 1;
  v1::GenerateRequest request = Request(5);
  request.set_request_id("twin");
  Answer& answer = GenerateSoon(request);
  ASSERT_TRUE(Eventually([&] { return State().running_requests() == 1; }));
  const Answer twin = Generate(request);
  EXPECT_EQ(twin.status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(twin.status.message()), HasSubstr("twin"));
  decode->token_limit = 100;
  JoinClients();
  ExpectTrue(answer, 5);
  ExpectTrue(Generate(request), 5);
}

TEST_F(NodeTest, DrainOfAWorkerIsToldAndHonoured) {
  const auto d0 = Decode("d0");
  const auto d1 = Decode("d1");
  const auto prefill = Prefill("p0");
  AwaitWorkers(3);
  grpc::ClientContext context;
  v1::DrainRequest request;
  request.set_worker("d0");
  v1::DrainResponse response;
  ASSERT_TRUE(admin_->Drain(&context, request, &response).ok());
  EXPECT_TRUE(Eventually([&] { return d0->drain_told(); }));
  for (int i = 0; i < 6; ++i) ExpectTrue(Generate(Request(3)), 3);
  EXPECT_EQ(d0->reservations(), 0);
  EXPECT_EQ(d1->reservations(), 6);
  grpc::ClientContext again;
  request.set_worker("nobody");
  const grpc::Status unknown = admin_->Drain(&again, request, &response);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), AllOf(HasSubstr("d0"), HasSubstr("d1"), HasSubstr("p0")));
}

TEST_F(NodeTest, ADrainingRouterFinishesWhatRuns) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 2;
  Answer& answer = GenerateSoon(Request(5));
  ASSERT_TRUE(Eventually([&] { return State().running_requests() == 1; }));
  node_->Drain();
  EXPECT_TRUE(Eventually([&] { return State().draining(); }));
  EXPECT_EQ(Generate(Request(1)).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(node_->idle());
  decode->token_limit = 100;
  JoinClients();
  ExpectTrue(answer, 5);
  EXPECT_TRUE(Eventually([&] { return node_->idle(); }));
}

TEST_F(NodeTest, ShutdownEndsWhatRunsWithUnavailable) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 2;
  Answer& answer = GenerateSoon(Request(5));
  ASSERT_TRUE(Eventually([&] { return State().running_requests() == 1; }));
  node_->Shutdown();
  JoinClients();
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(NodeTest, PrefillWorkersAreToldOfDecodeWorkers) {
  const auto prefill = Prefill("p0");
  const auto d0 = Decode("d0");
  ASSERT_TRUE(Eventually([&] { return prefill->peers().size() == 1; }));
  EXPECT_EQ(prefill->peers()[0].control_address(), d0->address());
  EXPECT_EQ(prefill->peers()[0].incarnation(), d0->incarnation());
  auto d1 = Decode("d1");
  ASSERT_TRUE(Eventually([&] { return prefill->peers().size() == 2; }));
  d1.reset();
  EXPECT_TRUE(Eventually([&] { return prefill->peers().size() == 1; }));
  const auto late = Prefill("p1");
  EXPECT_TRUE(Eventually([&] { return late->peers().size() == 1; }));
}

TEST_F(NodeTest, AnotherFingerprintIsRefusedWithTheDifference) {
  fakes::FakeWorkerOptions options = Options("d0");
  options.fingerprint.set_head_dim(128);
  rpc::SealFingerprint(options.fingerprint);
  const fakes::FakeDecode wrong_model(options);
  ASSERT_TRUE(Eventually([&] { return absl::IsFailedPrecondition(wrong_model.refused()); }));
  EXPECT_THAT(std::string(wrong_model.refused().message()),
              HasSubstr("head_dim: here 64, there 128"));

  const auto right = Decode("d1");
  AwaitWorkers(1);
  options = Options("d2");
  options.fingerprint.set_weights_hash(2);
  rpc::SealFingerprint(options.fingerprint);
  const fakes::FakeDecode other_weights(options);
  ASSERT_TRUE(Eventually([&] { return absl::IsFailedPrecondition(other_weights.refused()); }));
  EXPECT_THAT(std::string(other_weights.refused().message()), HasSubstr("weights_hash"));
  EXPECT_EQ(State().workers_size(), 1);
}

// Protobuf refuses such a message; the caller still hears what is wrong.
TEST_F(NodeTest, TextThatIsNotUtf8AndBytesThatAreNoMessage) {
  const auto call = [&](const std::string& bytes) {
    const auto channel = grpc::CreateChannel(node_->address(), grpc::InsecureChannelCredentials());
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slice(bytes);
    const auto reader = stub.PrepareUnaryCall(&context, "/kvferry.v1.Inference/Generate",
                                              grpc::ByteBuffer(&slice, 1), &queue);
    reader->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    reader->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status;
  };
  const grpc::Status text = call("\x42\x03 ab\xff");
  EXPECT_EQ(text.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const grpc::Status stop = call(std::string("\x42\x02") + "a\xff");
  EXPECT_EQ(stop.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stop.error_message(), HasSubstr("stop[0]"));
  EXPECT_EQ(call("\xff\xff\xff").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(NodeTest, ALargeMessageIsRefused) {
  v1::GenerateRequest request;
  request.set_prompt(std::string(5 << 20, 'a'));
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kResourceExhausted);
  request.set_prompt(std::string(3 << 20, 'a'));
  EXPECT_EQ(Generate(request).status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(NodeTest, CountTokens) {
  grpc::ClientContext context;
  v1::CountTokensRequest request;
  request.set_prompt("Hello world");
  v1::CountTokensResponse response;
  ASSERT_TRUE(inference_->CountTokens(&context, request, &response).ok());
  EXPECT_EQ(response.tokens(), 2u);
  EXPECT_EQ(response.ids_size(), 2);
  grpc::ClientContext again;
  EXPECT_EQ(inference_->CountTokens(&again, {}, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(NodeTest, ModelInfo) {
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(inference_->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model(), "demo");
  EXPECT_EQ(info.max_context_tokens(), 8192u);
  EXPECT_EQ(info.vocabulary(), 49152u);
  EXPECT_TRUE(info.codecs().empty());
  fakes::FakeWorkerOptions options = Options("d0");
  options.max_context_tokens = 100;
  options.codecs = {"kivi-2"};
  const fakes::FakeDecode decode(options);
  AwaitWorkers(1);
  grpc::ClientContext again;
  ASSERT_TRUE(inference_->GetModelInfo(&again, {}, &info).ok());
  EXPECT_EQ(info.max_context_tokens(), 100u);
  EXPECT_THAT(info.codecs(), ElementsAre("kivi-2"));
}

// A pool of a coupled codec, and prefill workers that have read its codebooks or others.
class CodebooksNodeTest : public NodeTest {
 protected:
  static constexpr char kPool[] = "cq-4c8b:recent=64,codebooks=00000000000000aa";
  static constexpr char kBooks[] = "cq-4c8b:codebooks=00000000000000aa";
  static constexpr char kOtherBooks[] = "cq-4c8b:codebooks=00000000000000bb";

  fakes::FakeWorkerOptions Options(const std::string& name, std::vector<std::string> codecs) {
    fakes::FakeWorkerOptions options = NodeTest::Options(name);
    options.codecs = std::move(codecs);
    return options;
  }
  // Of the attached: whose codec no prefill worker makes.
  std::vector<std::string> WithoutPrefill() {
    const v1::GetStateResponse state = State();
    std::vector<std::string> names;
    for (const v1::WorkerState& worker : state.workers()) {
      if (worker.no_prefill()) names.push_back(worker.name());
    }
    return names;
  }
};

TEST_F(CodebooksNodeTest, APrefillWorkerThatHasThemIsWaitedForAndTakesAll) {
  fakes::FakeDecode decode(Options("d0", {kPool}));
  fakes::FakePrefill without(Options("p0", {"fp16", kOtherBooks}));
  AwaitWorkers(2);
  EXPECT_THAT(WithoutPrefill(), ElementsAre("d0"));
  const Answer& early = GenerateSoon(Request(5));
  EXPECT_TRUE(Eventually([&] { return State().queued_requests() == 1; }));
  fakes::FakePrefill with(Options("p1", {"fp16", kBooks}));
  AwaitWorkers(3);
  EXPECT_THAT(WithoutPrefill(), ElementsAre());
  v1::GenerateRequest named = Request(5);
  named.set_codec(kPool);
  for (int i = 0; i < 8; ++i) GenerateSoon(i % 2 == 0 ? Request(5) : named);
  JoinClients();
  ExpectTrue(early, 5);
  for (const auto& answer : answers_) {
    ExpectTrue(*answer, 5);
    EXPECT_EQ(answer->finished.attempts(), 1u);
    EXPECT_EQ(answer->finished.prefill_worker(), "p1");
  }
  EXPECT_EQ(without.runs(), 0);
}

TEST_F(CodebooksNodeTest, MissingOnesAreNamedLongBeforeTheQueueLimit) {
  fakes::FakeDecode decode(Options("d0", {kPool}));
  fakes::FakePrefill prefill(Options("p0", {"fp16", kOtherBooks}));
  AwaitWorkers(2);
  const Answer answer = Generate(Request(5));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kFailedPrecondition) << answer.status;
  EXPECT_THAT(std::string(answer.status.message()),
              AllOf(HasSubstr(kPool), HasSubstr("setting `codebooks`")));
  EXPECT_EQ(decode.reservations(), 0);
  EXPECT_EQ(prefill.runs(), 0);
}

TEST_F(NodeTest, StateShowsWorkersAndRequests) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 2;
  v1::GenerateRequest request = Request(5);
  request.set_request_id("r7");
  GenerateSoon(request);
  ASSERT_TRUE(Eventually([&] {
    const v1::GetStateResponse state = State();
    return state.transfers_size() == 1 && state.transfers(0).state() == "DECODING";
  }));
  const v1::GetStateResponse state = State();
  EXPECT_EQ(state.role(), "router");
  EXPECT_EQ(state.fingerprint().hash(), Fingerprint().hash());
  EXPECT_EQ(state.transfers(0).request_id(), "r7");
  EXPECT_EQ(state.transfers(0).peer(), "p0 -> d0");
  EXPECT_EQ(state.transfers(0).transfer_id().size(), 16u);
  EXPECT_EQ(state.transfers(0).epoch(), 1u);
  EXPECT_GE(state.counters_size(), 4);
  decode->token_limit = 100;
}

}  // namespace
}  // namespace kvferry::router
