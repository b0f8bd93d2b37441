#include "prefill_node/engine.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/synchronization/notification.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "prefill_node/chunk_encoder.h"
#include "tests/fakes/fake_model.h"
#include "tests/fakes/fake_receiver.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::prefill {
namespace {

constexpr std::uint32_t kSlots = 4;
constexpr std::size_t kSlotBytes = 1 << 18;

// Keeps what a job tells.
class Observer final : public JobObserver {
 public:
  void OnProgress(std::uint32_t tokens_done) override {
    absl::MutexLock lock(&mutex);
    progress.push_back(tokens_done);
  }
  void OnFirstToken(std::int32_t token, const HandoffSummary& summary) override {
    absl::MutexLock lock(&mutex);
    first_token = token;
    so_far = summary;
  }
  void OnFinished(const absl::StatusOr<HandoffSummary>& r) override {
    absl::MutexLock lock(&mutex);
    EXPECT_FALSE(result.has_value()) << "finished twice";
    result = r;
  }
  absl::StatusOr<HandoffSummary> Wait() {
    absl::MutexLock lock(&mutex);
    const auto ready = [&] { return result.has_value(); };
    if (!mutex.AwaitWithTimeout(absl::Condition(&ready), fakes::kWaitLimit)) {
      return absl::DeadlineExceededError("the job did not finish");
    }
    return *result;
  }

  absl::Mutex mutex;
  std::vector<std::uint32_t> progress;
  std::int32_t first_token = -1;
  HandoffSummary so_far;
  std::optional<absl::StatusOr<HandoffSummary>> result;
};

// The CPU's, with marks as of a device that the model runs ahead of. It begins when it may.
class MarkingQuantizer final : public codec::Quantizer {
 public:
  explicit MarkingQuantizer(const codec::Quantizer& cpu) : cpu_(cpu) {}

  std::string name() const override { return cpu_.name(); }
  absl::Status Supports(const codec::BlockSpec& spec) const override { return cpu_.Supports(spec); }
  absl::Status Quantize(const codec::KvView& kv, const codec::BlockSpec& spec,
                        const codec::BlockOrigin& origin,
                        std::span<std::byte> page) const override {
    may_begin.WaitForNotification();
    {
      absl::MutexLock lock(&mutex);
      waited_for.push_back(kv.ready);
    }
    return cpu_.Quantize(kv, spec, origin, page);
  }
  std::uint64_t MarkReady() const override { return ++marks_; }

  mutable absl::Notification may_begin;
  mutable absl::Mutex mutex;
  mutable std::vector<std::uint64_t> waited_for;  // by page

 private:
  const codec::Quantizer& cpu_;
  mutable std::uint64_t marks_ = 0;  // the engine thread's
};

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    plane_ = DataPlane::Create(
                 {.incarnation = kSender,
                  .slot_bytes = kSlotBytes,
                  .slots = kSlots,
                  .limits = {.ack_deadline = absl::Milliseconds(100)}},
                 [this](Incarnation incarnation, transport::MessageSink* sink, const Clock& clock) {
                   return network_->CreateTransport(
                       {.incarnation = static_cast<std::uint64_t>(incarnation)}, sink, clock);
                 },
                 Clock::Steady(), *metrics_)
                 .value();
    receiver_.Connect(plane_->LocalAddress(), kSender);
    ASSERT_TRUE(plane_
                    ->AddPeer({.incarnation = receiver_.incarnation,
                               .name = "decode-0",
                               .data_address = receiver_.address(),
                               .key = receiver_.key})
                    .ok());
  }
  void StartEngine(EngineOptions options = {.chunk_tokens = 128}) {
    engine_ =
        Engine::Create(options, model_, *backend_, *plane_, Clock::Steady(), *metrics_).value();
  }
  void TearDown() override {
    Release();
    if (engine_ != nullptr) {
      EXPECT_TRUE(engine_->WaitIdle(fakes::kWaitLimit));
      EXPECT_TRUE(plane_->WaitIdle(fakes::kWaitLimit));
      EXPECT_EQ(plane_->free_slots(), kSlots);
      engine_->Stop();
    }
    plane_->Stop();
  }

  // The model waits before this layer of the first step until Release.
  void HoldAtLayer(int layer) {
    model_.before_layer = [this, layer](int at, int) {
      if (at == layer && !held_.HasBeenNotified()) {
        held_.Notify();
        gate_.WaitForNotification();
      }
      return absl::OkStatus();
    };
  }
  void Release() {
    if (!gate_.HasBeenNotified()) gate_.Notify();
  }

  JobRequest Request(int tokens, const std::string& codec = "kivi-4-g64") {
    JobRequest request;
    request.request_id = "request";
    request.transfer_id = TransferId::Random();
    request.epoch = Epoch{1};
    request.decode = receiver_.incarnation;
    request.credits = 2;
    request.slot_bytes = kSlotBytes;
    request.codec = codec::FindCodec(codec).value();
    request.tokens.resize(tokens);
    std::iota(request.tokens.begin(), request.tokens.end(), 0);
    return request;
  }

  // What arrived equals what the plan says of the model's values, byte for byte.
  void CheckBytes(const JobRequest& request) {
    const int tokens = static_cast<int>(request.tokens.size());
    std::vector<codec::KvView> views;
    std::vector<codec::BlockSpec> specs;
    std::vector<fakes::LayerKv> layers;
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      layers.emplace_back(kGeometry, layer, tokens);
      specs.push_back(request.codec.ForLayer(layer, kGeometry.head_dim).value());
    }
    for (const fakes::LayerKv& layer : layers) views.push_back(layer.View());
    const auto chunks = LayoutChunks({.plan = codec::PlanBlocks(tokens, request.codec.window),
                                      .geometry = kGeometry,
                                      .layers = specs,
                                      .step_tokens = 128,
                                      .slot_bytes = kSlotBytes})
                            .value();
    const fakes::FakeReceiver::Received received = receiver_.Get(request.transfer_id);
    ASSERT_EQ(received.payloads.size(), chunks.size());
    for (std::uint32_t seq = 0; seq < chunks.size(); ++seq) {
      const ChunkPlan& chunk = chunks[seq];
      const transport::ChunkHeader& header = received.headers.at(seq);
      EXPECT_EQ(header.kind, chunk.kind);
      EXPECT_EQ(header.token_begin, static_cast<std::uint32_t>(chunk.token_begin));
      EXPECT_EQ(header.codec_hash, request.codec.Hash());
      std::vector<std::byte> storage(chunk.bytes + 128);
      void* aligned = storage.data();
      std::size_t space = storage.size();
      std::align(128, chunk.bytes, aligned, space);
      const std::span<std::byte> expected(static_cast<std::byte*>(aligned), chunk.bytes);
      ASSERT_TRUE(EncodeChunk(chunk, specs, views, *backend_, expected).ok());
      ASSERT_EQ(received.payloads.at(seq).size(), chunk.bytes);
      EXPECT_EQ(std::memcmp(received.payloads.at(seq).data(), expected.data(), chunk.bytes), 0)
          << "chunk " << seq;
    }
  }

  static constexpr Incarnation kSender{77};
  static constexpr codec::CacheGeometry kGeometry{.layers = 4, .kv_heads = 2, .head_dim = 64};
  std::unique_ptr<Metrics> metrics_ = Metrics::Create();
  std::unique_ptr<transport::LoopbackNetwork> network_ = transport::LoopbackNetwork::Create();
  fakes::FakeReceiver receiver_{*network_, Clock::Steady()};
  fakes::FakeModel model_{kGeometry};
  std::unique_ptr<codec::Backend> backend_ = codec::CreateCpuBackend({.threads = 1}).value();
  std::unique_ptr<DataPlane> plane_;
  DeviceWatch lost_{[] { return absl::UnavailableError("illegal address"); }, {}};
  std::unique_ptr<Engine> engine_;
  absl::Notification held_, gate_;
};

TEST_F(EngineTest, ShipsEveryByteOfThePlan) {
  StartEngine();
  for (const char* codec : {"kivi-4-g64", "fp16", "fp8", "nqkv-nf4", "kivi-2:layer.2=8/8"}) {
    for (int tokens : {1, 70, 133, 700}) {
      SCOPED_TRACE(std::string(codec) + ", " + std::to_string(tokens) + " tokens");
      const JobRequest request = Request(tokens, codec);
      auto observer = std::make_shared<Observer>();
      ASSERT_TRUE(engine_->Submit(request, observer).ok());
      const auto summary = observer->Wait();
      ASSERT_TRUE(summary.ok()) << summary.status();
      CheckBytes(request);
      EXPECT_EQ(summary->prompt_tokens, static_cast<std::uint32_t>(tokens));
      EXPECT_EQ(summary->payload_bytes,
                codec::HandoffBytes(tokens, request.codec, kGeometry).value());
      EXPECT_EQ(summary->raw16_bytes, codec::Raw16HandoffBytes(tokens, kGeometry));
      EXPECT_EQ(summary->transport, "loopback");
      EXPECT_GT(summary->prefill_time, absl::ZeroDuration());
      EXPECT_GT(summary->exposed_time, absl::ZeroDuration());
      EXPECT_TRUE(summary->adopted);
      EXPECT_EQ(observer->first_token, tokens);
      EXPECT_FALSE(observer->so_far.adopted);
      EXPECT_EQ(observer->so_far.prompt_tokens, summary->prompt_tokens);
      EXPECT_EQ(observer->so_far.raw16_bytes, summary->raw16_bytes);
      EXPECT_LE(observer->so_far.payload_bytes, summary->payload_bytes);
      EXPECT_LE(observer->so_far.chunks, summary->chunks);
      EXPECT_EQ(observer->so_far.transport, "loopback");
      EXPECT_EQ(observer->so_far.prefill_time, summary->prefill_time);
      EXPECT_EQ(observer->so_far.exposed_time, absl::ZeroDuration());
      EXPECT_EQ(receiver_.Get(request.transfer_id).first_token, tokens);
      ASSERT_FALSE(observer->progress.empty());
      EXPECT_EQ(observer->progress.back(), static_cast<std::uint32_t>(tokens));
    }
  }
}

TEST_F(EngineTest, ChunksTravelWhileTheModelComputes) {
  HoldAtLayer(3);
  StartEngine({.chunk_tokens = 4096});
  const JobRequest request = Request(3000, "fp16");  // 1.5 MB a layer: several chunks each
  auto observer = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(request, observer).ok());
  held_.WaitForNotification();
  EXPECT_TRUE(receiver_.Wait(request.transfer_id, [](const auto& t) {
    return t.payloads.size() >= 6;
  })) << "layers 0 to 2 arrive before layer 3 is computed";
  Release();
  EXPECT_TRUE(observer->Wait().ok());
}

TEST_F(EngineTest, ChunksWaitForTheirOwnStepWhenTheModelIsAhead) {
  const MarkingQuantizer quantizer(*backend_);
  engine_ =
      Engine::Create({.chunk_tokens = 128}, model_, quantizer, *plane_, Clock::Steady(), *metrics_)
          .value();
  const JobRequest request = Request(4 + 3 * 128);  // 4 sinks; each step completes blocks
  auto observer = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(request, observer).ok());
  {
    absl::MutexLock lock(&observer->mutex);
    const auto computed = [&] { return observer->first_token >= 0; };
    EXPECT_TRUE(observer->mutex.AwaitWithTimeout(absl::Condition(&computed), fakes::kWaitLimit));
  }
  quantizer.may_begin.Notify();
  ASSERT_TRUE(observer->Wait().ok());
  CheckBytes(request);
  // Of every page: the mark of its layer in the step that completed it.
  std::vector<std::uint64_t> expected;
  const codec::BlockPlan plan = codec::PlanBlocks(4 + 3 * 128, request.codec.window);
  for (int step = 0, done = 0; step < 4; ++step) {
    const int tokens = std::min(4 + 3 * 128, (step + 1) * 128);
    const int blocks = std::clamp((tokens - plan.sinks) / codec::kBlockTokens, 0, plan.blocks);
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      expected.insert(expected.end(), blocks - done, step * kGeometry.layers + layer + 1);
    }
    done = blocks;
  }
  absl::MutexLock lock(&quantizer.mutex);
  EXPECT_EQ(quantizer.waited_for, expected);
}

TEST_F(EngineTest, ManyJobsInTurn) {
  StartEngine();
  std::vector<std::shared_ptr<Observer>> observers;
  for (int i = 0; i < 20; ++i) {
    observers.push_back(std::make_shared<Observer>());
    ASSERT_TRUE(engine_->Submit(Request(100 + i), observers.back()).ok());
  }
  for (const auto& observer : observers) EXPECT_TRUE(observer->Wait().ok());
  EXPECT_EQ(engine_->load().queued_requests, 0u);
  EXPECT_EQ(engine_->load().queued_tokens, 0u);
  EXPECT_GE(engine_->load().steps, 20u * 4);
}

TEST_F(EngineTest, AFullQueueRefuses) {
  HoldAtLayer(0);
  StartEngine({.chunk_tokens = 128, .max_queued_requests = 1});
  auto first = std::make_shared<Observer>(), second = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(100), first).ok());
  held_.WaitForNotification();
  ASSERT_TRUE(engine_->Submit(Request(50), second).ok());
  EXPECT_EQ(engine_->Submit(Request(50), std::make_shared<Observer>()).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->load().running_requests, 1u);
  EXPECT_EQ(engine_->load().queued_requests, 1u);
  EXPECT_EQ(engine_->load().queued_tokens, 150u);
  Release();
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(second->Wait().ok());
}

TEST_F(EngineTest, AbortWhileQueuedWhileComputingAndBeforeItCame) {
  HoldAtLayer(1);
  StartEngine();
  const JobRequest running = Request(100), queued = Request(100), late = Request(100);
  auto running_observer = std::make_shared<Observer>();
  auto queued_observer = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(running, running_observer).ok());
  held_.WaitForNotification();
  ASSERT_TRUE(engine_->Submit(queued, queued_observer).ok());
  engine_->Abort(queued.transfer_id, Epoch{1}, absl::CancelledError("stop"));
  EXPECT_EQ(queued_observer->Wait().status(), absl::CancelledError("stop"));
  engine_->Abort(running.transfer_id, Epoch{2}, absl::CancelledError("another attempt"));
  EXPECT_FALSE(running_observer->result.has_value());
  engine_->Abort(running.transfer_id, Epoch{1}, absl::CancelledError("stop"));
  EXPECT_EQ(running_observer->Wait().status(), absl::CancelledError("stop"));
  engine_->Abort(late.transfer_id, Epoch{1}, absl::CancelledError("stop"));
  EXPECT_EQ(engine_->Submit(late, std::make_shared<Observer>()).code(), absl::StatusCode::kAborted);
  Release();
  auto next = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(100), next).ok());
  EXPECT_TRUE(next->Wait().ok()) << "nobody else is affected";
}

TEST_F(EngineTest, AbortWhileWaitingForSlotsAndForAdoption) {
  StartEngine();
  receiver_.Behave({.silent = true});
  const JobRequest blocked = Request(3000, "fp16");
  auto observer = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(blocked, observer).ok());
  EXPECT_TRUE(receiver_.Wait(blocked.transfer_id, [](const auto&) { return true; }));
  engine_->Abort(blocked.transfer_id, Epoch{1}, absl::CancelledError("stop"));
  EXPECT_EQ(observer->Wait().status(), absl::CancelledError("stop"));

  receiver_.Behave({.never_adopt = true});
  const JobRequest committed = Request(100);
  auto other = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(committed, other).ok());
  EXPECT_TRUE(receiver_.Wait(committed.transfer_id, [](const auto& t) { return t.committed; }));
  engine_->Abort(committed.transfer_id, Epoch{1}, absl::CancelledError("stop"));
  EXPECT_EQ(other->Wait().status(), absl::CancelledError("stop"));
  receiver_.Behave({});
}

TEST_F(EngineTest, ErrorsEndTheirJobOnly) {
  StartEngine();
  model_.nan_layer = 2;
  model_.nan_token = 70;
  auto nan = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(300), nan).ok());
  EXPECT_EQ(nan->Wait().status().code(), absl::StatusCode::kInvalidArgument);
  model_.nan_layer = -1;

  model_.before_layer = [](int layer, int) {
    return layer == 2 ? absl::InternalError("broken") : absl::OkStatus();
  };
  auto broken = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(300), broken).ok());
  EXPECT_EQ(broken->Wait().status(), absl::InternalError("broken"));
  EXPECT_TRUE(engine_->WaitIdle(fakes::kWaitLimit));
  model_.before_layer = nullptr;

  JobRequest stranger = Request(300);
  stranger.decode = Incarnation{123456};
  auto unknown = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(stranger, unknown).ok());
  EXPECT_EQ(unknown->Wait().status().code(), absl::StatusCode::kUnavailable);

  JobRequest tiny = Request(300);
  tiny.slot_bytes = 100;
  EXPECT_EQ(engine_->Submit(tiny, std::make_shared<Observer>()).code(),
            absl::StatusCode::kInvalidArgument);

  JobRequest expired = Request(300);
  expired.lease = absl::ZeroDuration();
  auto late = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(expired, late).ok());
  EXPECT_EQ(late->Wait().status().code(), absl::StatusCode::kAborted);

  auto fine = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(300), fine).ok());
  EXPECT_TRUE(fine->Wait().ok());
}

TEST_F(EngineTest, DrainFinishesWhatRuns) {
  HoldAtLayer(0);
  StartEngine();
  auto running = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(100), running).ok());
  held_.WaitForNotification();
  engine_->StartDraining();
  EXPECT_TRUE(engine_->load().draining);
  EXPECT_EQ(engine_->Submit(Request(100), std::make_shared<Observer>()).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->WaitIdle(absl::ZeroDuration()));
  Release();
  EXPECT_TRUE(running->Wait().ok());
}

TEST_F(EngineTest, StopFailsWhatIsLeft) {
  StartEngine();
  receiver_.Behave({.silent = true});
  auto running = std::make_shared<Observer>(), queued = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(3000, "fp16"), running).ok());
  ASSERT_TRUE(engine_->Submit(Request(3000, "fp16"), queued).ok());
  engine_->Stop();
  EXPECT_EQ(running->Wait().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(queued->Wait().status().code(), absl::StatusCode::kUnavailable);
  receiver_.Behave({});
}

TEST_F(EngineTest, RefusesAChunkSizeThatSplitsBlocks) {
  EXPECT_EQ(
      Engine::Create({.chunk_tokens = 100}, model_, *backend_, *plane_, Clock::Steady(), *metrics_)
          .status()
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, AfterTheLossOfItsDeviceRequestsAreToRunElsewhere) {
  StartEngine({.chunk_tokens = 128, .watch = &lost_});
  model_.before_layer = [](int layer, int) {
    return layer == 2 ? absl::InternalError("broken") : absl::OkStatus();
  };
  auto observer = std::make_shared<Observer>();
  ASSERT_TRUE(engine_->Submit(Request(300), observer).ok());
  EXPECT_EQ(observer->Wait().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kvferry::prefill
