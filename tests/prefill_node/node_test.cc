// A whole prefill worker in this process: gRPC in front, loopback behind, a model without weights.
#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/decode.grpc.pb.h"
#include "kvferry/v1/prefill.grpc.pb.h"
#include "prefill_node/wiring.h"
#include "tests/fakes/fake_model.h"
#include "tests/fakes/fake_receiver.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::prefill {
namespace {

// The decode side's Handshake, on top of a FakeReceiver.
class FakeTransferService final : public v1::Transfer::Service {
 public:
  explicit FakeTransferService(fakes::FakeReceiver& receiver) : receiver_(receiver) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Handshake(grpc::ServerContext*, const v1::HandshakeRequest* request,
                         v1::HandshakeResponse* response) override {
    ++handshakes;
    if (wrong_layers) {
      v1::Fingerprint other = request->fingerprint();
      other.set_layers(other.layers() + 1);
      other.set_hash(other.hash() + 1);
      *response->mutable_fingerprint() = other;
    } else {
      *response->mutable_fingerprint() = request->fingerprint();
    }
    transport::PairKey key;
    std::copy(request->pair_key().begin(), request->pair_key().end(), key.begin());
    receiver_.SetKey(key);
    receiver_.Connect(request->data_address(), Incarnation{request->prefill_incarnation()});
    response->set_decode_name("decode-0");
    response->set_decode_incarnation(static_cast<std::uint64_t>(receiver_.incarnation));
    response->set_data_address(receiver_.address());
    response->set_transport("loopback");
    return grpc::Status::OK;
  }

  std::atomic<int> handshakes = 0;
  std::atomic<bool> wrong_layers = false;

 private:
  fakes::FakeReceiver& receiver_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class NodeTest : public testing::Test {
 protected:
  void SetUp() override {
    v1::PrefillConfig config;
    config.mutable_worker()->set_name("prefill-0");
    config.mutable_model()->set_path("unused.gguf");
    config.mutable_tls()->set_insecure(true);
    config.set_chunk_tokens(128);
    auto model = std::make_unique<fakes::FakeModel>();
    model_ = model.get();
    PrefillNodeParts parts;
    parts.model = std::move(model);
    parts.transport = [this](Incarnation incarnation, transport::MessageSink* sink,
                             const Clock& clock) {
      return network_->CreateTransport({.incarnation = static_cast<std::uint64_t>(incarnation)},
                                       sink, clock);
    };
    auto node = PrefillNode::Create(config, std::move(parts));
    ASSERT_TRUE(node.ok()) << node.status();
    node_ = *std::move(node);
    auto channel = grpc::CreateChannel(node_->address(), grpc::InsecureChannelCredentials());
    prefill_ = v1::Prefill::NewStub(channel);
    admin_ = v1::Admin::NewStub(channel);
  }

  v1::PrefillRequest Request(int tokens) {
    v1::PrefillRequest request;
    request.set_request_id("r1");
    v1::Grant& grant = *request.mutable_grant();
    grant.set_transfer_id(TransferId::Random().ToBytes());
    grant.set_epoch(1);
    grant.set_decode_incarnation(static_cast<std::uint64_t>(receiver_.incarnation));
    grant.set_decode_name("decode-0");
    grant.set_decode_control_address(service_.address());
    grant.set_codec("kivi-4-g64");
    grant.set_codec_hash(codec::FindCodec("kivi-4-g64")->Hash());
    grant.set_credits(4);
    grant.set_slot_bytes(1 << 20);
    for (int i = 0; i < tokens; ++i) request.add_tokens(i % 1000);
    request.mutable_sampling()->set_seed(1);
    return request;
  }
  static TransferId IdOf(const v1::PrefillRequest& request) {
    return TransferId::FromBytes(request.grant().transfer_id()).value();
  }

  struct Outcome {
    std::vector<v1::PrefillEvent> events;
    grpc::Status status;
  };
  Outcome Run(const v1::PrefillRequest& request) {
    grpc::ClientContext context;
    auto reader = prefill_->Run(&context, request);
    Outcome outcome;
    v1::PrefillEvent event;
    while (reader->Read(&event)) outcome.events.push_back(event);
    outcome.status = reader->Finish();
    return outcome;
  }
  v1::GetStateResponse State() {
    grpc::ClientContext context;
    v1::GetStateResponse state;
    EXPECT_TRUE(admin_->GetState(&context, {}, &state).ok());
    return state;
  }

  std::unique_ptr<transport::LoopbackNetwork> network_ = transport::LoopbackNetwork::Create();
  fakes::FakeReceiver receiver_{*network_, Clock::Steady()};
  FakeTransferService service_{receiver_};
  fakes::FakeModel* model_ = nullptr;
  std::unique_ptr<PrefillNode> node_;
  std::unique_ptr<v1::Prefill::Stub> prefill_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

TEST_F(NodeTest, StreamsProgressFirstTokenAndCommit) {
  const v1::PrefillRequest request = Request(300);
  const Outcome outcome = Run(request);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  ASSERT_EQ(outcome.events.size(), 5u);
  EXPECT_EQ(outcome.events[0].progress().tokens_done(), 128u);
  EXPECT_EQ(outcome.events[2].progress().tokens_done(), 300u);
  EXPECT_EQ(outcome.events[3].first_token().id(), 300);
  EXPECT_FALSE(outcome.events[3].first_token().handoff().adopted());
  EXPECT_EQ(outcome.events[3].first_token().handoff().prompt_tokens(), 300u);
  EXPECT_TRUE(outcome.events[4].committed().handoff().adopted());
  EXPECT_EQ(outcome.events[4].committed().handoff().prompt_tokens(), 300u);
  EXPECT_TRUE(receiver_.Get(IdOf(request)).adopted);
  EXPECT_TRUE(Run(Request(10)).status.ok());
  EXPECT_EQ(service_.handshakes, 1) << "once per pair";
  const v1::GetStateResponse state = State();
  EXPECT_EQ(state.name(), "prefill-0");
  EXPECT_EQ(state.role(), "prefill");
  EXPECT_EQ(state.fingerprint().layers(), 4u);
  EXPECT_EQ(state.counters().at("kvferry_prefill_prompt_tokens_total"), 310u);
}

TEST_F(NodeTest, BadRequestsNameTheField) {
  v1::PrefillRequest request = Request(300);
  request.set_tokens(5, 1000);
  const Outcome outcome = Run(request);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(outcome.status.error_message().find("tokens[5]"), std::string::npos);
}

TEST_F(NodeTest, AnotherFingerprintIsRefusedWithTheDifference) {
  service_.wrong_layers = true;
  const Outcome outcome = Run(Request(10));
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(outcome.status.error_message().find("layers"), std::string::npos)
      << outcome.status.error_message();
  service_.wrong_layers = false;
  EXPECT_TRUE(Run(Request(10)).status.ok()) << "the next request tries again";
}

TEST_F(NodeTest, ARestartedDecodeWorkerIsNotItsPredecessor) {
  v1::PrefillRequest request = Request(10);
  request.mutable_grant()->set_decode_incarnation(4711);
  EXPECT_EQ(Run(request).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  request = Request(10);
  request.mutable_grant()->set_decode_control_address("127.0.0.1:1");
  EXPECT_EQ(Run(request).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(NodeTest, ABrokenCallAbortsTheTransfer) {
  receiver_.Behave({.never_adopt = true});
  const v1::PrefillRequest request = Request(300);
  grpc::ClientContext context;
  auto reader = prefill_->Run(&context, request);
  v1::PrefillEvent event;
  do {
    ASSERT_TRUE(reader->Read(&event));
  } while (!event.has_first_token());
  context.TryCancel();
  EXPECT_TRUE(receiver_.Wait(IdOf(request), [](const auto& t) { return t.aborted; }));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(node_->WaitIdle(fakes::kWaitLimit));
}

TEST_F(NodeTest, AbortEndsTheCall) {
  receiver_.Behave({.never_adopt = true});
  const v1::PrefillRequest request = Request(300);
  grpc::ClientContext context, abort_context;
  auto reader = prefill_->Run(&context, request);
  v1::PrefillEvent event;
  do {
    ASSERT_TRUE(reader->Read(&event));
  } while (!event.has_first_token());
  v1::AbortRequest abort;
  abort.set_transfer_id(request.grant().transfer_id());
  abort.set_epoch(1);
  v1::AbortResponse response;
  ASSERT_TRUE(prefill_->Abort(&abort_context, abort, &response).ok());
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(NodeTest, DrainFinishesThenShutdownIsClean) {
  grpc::ClientContext context;
  v1::DrainResponse response;
  ASSERT_TRUE(admin_->Drain(&context, {}, &response).ok());
  EXPECT_TRUE(State().draining());
  EXPECT_EQ(Run(Request(10)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(node_->WaitIdle(fakes::kWaitLimit));
  node_->Shutdown();
  node_->Shutdown();
}

TEST_F(NodeTest, ShutdownEndsRunningCalls) {
  receiver_.Behave({.never_adopt = true});
  Outcome outcome;
  const v1::PrefillRequest request = Request(300);
  std::thread caller([&] { outcome = Run(request); });
  EXPECT_TRUE(receiver_.Wait(IdOf(request), [](const auto& t) { return t.committed; }));
  node_->Shutdown();
  caller.join();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << outcome.status.error_message();
}

}  // namespace
}  // namespace kvferry::prefill
