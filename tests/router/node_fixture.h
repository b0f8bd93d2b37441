#pragma once

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvcodec/codec.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/inference.grpc.pb.h"
#include "model/config_reader.h"
#include "router/wiring.h"
#include "rpc/convert.h"
#include "rpc/fingerprint.h"
#include "rpc/status.h"
#include "tests/fakes/fake_worker.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::router {

// What a client saw.
struct Answer {
  absl::Status status;
  std::vector<std::int32_t> ids;
  std::string text;
  v1::Started started;
  v1::Finished finished;
  int messages = 0;
  bool contiguous = true;
};

// A router with the demo model's tokenizer and workers that are scripts, in this process.
class NodeFixture : public testing::Test {
 protected:
  static constexpr int kPromptTokens = 3;
  static constexpr absl::Duration kSilenceLimit = absl::Milliseconds(400 * fakes::kSlowdown);

  void StartRouter(const std::function<void(v1::RouterConfig&)>& change = {}) {
    v1::RouterConfig config;
    config.mutable_model()->set_path(KVFERRY_DEMO_MODEL);
    config.mutable_model()->set_name("demo");
    config.set_listen_address("127.0.0.1:0");
    config.mutable_tls()->set_insecure(true);
    config.mutable_report_interval()->set_nanos(20'000'000);
    *config.mutable_silence_limit() = rpc::ToProto(kSilenceLimit);
    if (change) change(config);
    auto node = RouterNode::Create(config);
    ASSERT_TRUE(node.ok()) << node.status();
    node_ = *std::move(node);
    const auto channel = grpc::CreateChannel(node_->address(), grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel);
    admin_ = v1::Admin::NewStub(channel);
  }

  fakes::FakeWorkerOptions Options(const std::string& name) {
    return {.name = name,
            .router_address = node_->address(),
            .fingerprint = Fingerprint(),
            .data_plane = &data_plane_};
  }
  std::unique_ptr<fakes::FakeDecode> Decode(const std::string& name) {
    return std::make_unique<fakes::FakeDecode>(Options(name));
  }
  std::unique_ptr<fakes::FakePrefill> Prefill(const std::string& name) {
    return std::make_unique<fakes::FakePrefill>(Options(name));
  }
  static v1::Fingerprint Fingerprint() {
    static const model::ModelConfig config = model::ReadModelConfig(KVFERRY_DEMO_MODEL).value();
    v1::Fingerprint fingerprint;
    fingerprint.set_wire_version(1);
    fingerprint.set_model_name("demo");
    fingerprint.set_weights_hash(1);
    fingerprint.set_layers(config.layers);
    fingerprint.set_kv_heads(config.kv_heads);
    fingerprint.set_head_dim(config.head_dim);
    fingerprint.set_rope_hash(config.RopeHash());
    fingerprint.set_vocabulary(config.vocabulary);
    fingerprint.set_tensor_parallel(1);
    fingerprint.set_codecs_hash(codec::RegistryHash());
    rpc::SealFingerprint(fingerprint);
    return fingerprint;
  }

  static v1::GenerateRequest Request(int max_tokens) {
    v1::GenerateRequest request;
    for (int i = 0; i < kPromptTokens; ++i) request.mutable_tokens()->add_ids(10 + i);
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }
  // `on_event` may cancel by returning false.
  Answer Generate(const v1::GenerateRequest& request,
                  const std::function<bool(const v1::GenerateEvent&)>& on_event = {},
                  absl::Duration deadline = fakes::kWaitLimit) {
    Answer answer;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline));
    const auto reader = inference_->Generate(&context, request);
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
      ++answer.messages;
      if (event.has_started()) answer.started = event.started();
      if (event.has_finished()) answer.finished = event.finished();
      if (event.has_tokens()) {
        const v1::Tokens& tokens = event.tokens();
        answer.contiguous = answer.contiguous && tokens.first_index() == answer.ids.size();
        answer.ids.insert(answer.ids.end(), tokens.ids().begin(), tokens.ids().end());
        answer.text += tokens.text();
      }
      if (on_event && !on_event(event)) context.TryCancel();
    }
    answer.status = rpc::FromGrpc(reader->Finish());
    return answer;
  }
  // In a thread of its own; joined by the fixture.
  Answer& GenerateSoon(const v1::GenerateRequest& request) {
    Answer& answer = *answers_.emplace_back(std::make_unique<Answer>());
    threads_.emplace_back([this, request, &answer] { answer = Generate(request); });
    return answer;
  }
  void JoinClients() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // All tokens of a whole answer, whatever happened on the way.
  static void ExpectTrue(const Answer& answer, int tokens) {
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(answer.contiguous);
    std::vector<std::int32_t> expected;
    for (int i = 0; i < tokens; ++i)
      expected.push_back(fakes::TokenAt(static_cast<std::uint32_t>(kPromptTokens + i)));
    EXPECT_EQ(answer.ids, expected);
  }

  v1::GetStateResponse State() {
    grpc::ClientContext context;
    v1::GetStateResponse state;
    EXPECT_TRUE(admin_->GetState(&context, {}, &state).ok());
    return state;
  }
  // Polls until `done`; false after kWaitLimit.
  static bool Eventually(const std::function<bool()>& done) {
    const auto end = absl::Now() + fakes::kWaitLimit;
    while (!done()) {
      if (absl::Now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }
  // Attached and known to the router by a first report.
  void AwaitWorkers(int count) {
    ASSERT_TRUE(Eventually([&] {
      const v1::GetStateResponse state = State();
      int ready = 0;
      for (const v1::WorkerState& worker : state.workers()) ready += worker.total_pages() > 0;
      return state.workers_size() == count && ready == count;
    })) << State().ShortDebugString();
  }

  void TearDown() override {
    JoinClients();
    if (node_ != nullptr) node_->Shutdown();
  }

  fakes::FakeDataPlane data_plane_;
  std::unique_ptr<RouterNode> node_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::vector<std::unique_ptr<Answer>> answers_;
  std::vector<std::thread> threads_;
};

}  // namespace kvferry::router
