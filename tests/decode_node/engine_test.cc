#include "decode_node/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/synchronization/notification.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_step_runner.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/decode_node/transfer_builder.h"
#include "tests/fakes/fake_decode_model.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::decode {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Keeps what a sequence became.
class Recorder final : public SequenceObserver {
 public:
  void OnToken(std::uint32_t position, std::int32_t id) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(finished_);
    EXPECT_EQ(position, first_position_ + tokens_.size());
    tokens_.push_back(id);
  }
  void OnFinished(const absl::Status& status, bool stop_token) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(finished_);
    finished_ = true;
    status_ = status;
    stop_token_ = stop_token;
  }
  absl::Status Wait() {
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&finished_), fakes::kWaitLimit)) {
      return absl::DeadlineExceededError("the sequence does not end");
    }
    return status_;
  }
  void WaitTokens(std::size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto ready = [&] { return tokens_.size() >= count || finished_; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ready), fakes::kWaitLimit));
  }
  std::vector<std::int32_t> tokens() {
    absl::MutexLock lock(&mutex_);
    return tokens_;
  }
  bool stop_token() {
    absl::MutexLock lock(&mutex_);
    return stop_token_;
  }
  void ExpectFrom(std::uint32_t position) { first_position_ = position; }

 private:
  absl::Mutex mutex_;
  std::uint32_t first_position_ = 0;
  std::vector<std::int32_t> tokens_;
  bool finished_ = false, stop_token_ = false;
  absl::Status status_;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    backend = codec::CreateCpuBackend({}).value();
    memory = std::make_unique<HostCacheMemory>(*backend);
    store = CacheStore::Create(
                {.codec = TestCodec(), .geometry = kGeometry, .pool_bytes = std::uint64_t{4} << 20},
                *memory)
                .value();
    runner = std::make_unique<HostStepRunner>(model, *store, *backend);
    metrics = Metrics::Create();
    engine = std::make_unique<Engine>(*runner, *store, watch, Clock::Steady(), *metrics);
  }

  // A prompt without blocks; its tokens are its positions, the first token follows.
  SequenceRequest Make(int prompt_tokens, int max_new_tokens) {
    SequenceRequest request;
    request.id = TransferId::Random();
    request.cache = store->Reserve(prompt_tokens, max_new_tokens).value();
    const TransferSpec spec = MakeSpec(prompt_tokens);
    for (const auto kind : {transport::ChunkKind::kSinks, transport::ChunkKind::kWindow}) {
      transport::ChunkHeader header = MakeChunk(spec, kind, 0);
      if (header.payload_bytes == 0) continue;  // all tokens are sinks: no such chunk is sent
      EXPECT_TRUE(request.cache->CopyChunk(header, RawPayload(header)).ok());
    }
    EXPECT_TRUE(request.cache->Publish().ok());
    for (int i = 0; i <= prompt_tokens; ++i) request.tokens.push_back(i);
    request.max_new_tokens = max_new_tokens;
    return request;
  }
  std::shared_ptr<Recorder> Submit(SequenceRequest request) {
    auto recorder = std::make_shared<Recorder>();
    recorder->ExpectFrom(static_cast<std::uint32_t>(request.tokens.size()));
    engine->Submit(std::move(request), recorder);
    return recorder;
  }
  void ExpectAllFree() const {
    EXPECT_EQ(store->sequences(), 0u);
    EXPECT_EQ(store->free_rows(), store->rows());
    EXPECT_TRUE(store->CheckConservation().ok());
  }

  fakes::FakeDecodeModel model{kGeometry};
  std::unique_ptr<codec::Backend> backend;
  std::unique_ptr<HostCacheMemory> memory;
  std::unique_ptr<CacheStore> store;
  std::unique_ptr<HostStepRunner> runner;
  std::unique_ptr<Metrics> metrics;
  std::atomic<bool> device_lost{false};
  DeviceWatch watch{
      [this] { return device_lost ? absl::UnavailableError("illegal address") : absl::OkStatus(); },
      {}};
  std::unique_ptr<Engine> engine;
};

TEST_F(EngineTest, GeneratesWhatWasAskedFor) {
  const auto one = Submit(Make(3, 5));
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_THAT(one->tokens(), ElementsAre(4, 5, 6, 7));  // the first token, 3, is known
  EXPECT_FALSE(one->stop_token());
  ExpectAllFree();
  EXPECT_EQ(engine->load().running, 0u);
  EXPECT_EQ(engine->load().stall, absl::ZeroDuration());
}

TEST_F(EngineTest, FlushesAsItGrows) {
  const auto one = Submit(Make(60, 400));
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_EQ(one->tokens().size(), 399u);
  EXPECT_EQ(one->tokens().back(), 459);
  ExpectAllFree();
}

TEST_F(EngineTest, OneTokenNeedsNoStep) {
  const auto one = Submit(Make(3, 1));
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_THAT(one->tokens(), ElementsAre());
  EXPECT_EQ(engine->load().steps, 0u);
}

TEST_F(EngineTest, StopTokensEnd) {
  SequenceRequest request = Make(3, 50);
  request.stop_tokens = {6};
  const auto one = Submit(std::move(request));
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_THAT(one->tokens(), ElementsAre(4, 5, 6));
  EXPECT_TRUE(one->stop_token());
  SequenceRequest at_once = Make(3, 50);
  at_once.stop_tokens = {3};
  const auto two = Submit(std::move(at_once));
  EXPECT_TRUE(two->Wait().ok());
  EXPECT_THAT(two->tokens(), ElementsAre());
  EXPECT_TRUE(two->stop_token());
}

TEST_F(EngineTest, SequencesJoinAndLeaveBetweenSteps) {
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (int i = 0; i < 24; ++i) recorders.push_back(Submit(Make(1 + i % 7, 20 + 3 * i)));
  for (int i = 0; i < 24; ++i) {
    EXPECT_TRUE(recorders[i]->Wait().ok());
    EXPECT_EQ(recorders[i]->tokens().size(), 19u + 3 * i);
    EXPECT_EQ(recorders[i]->tokens().back(), i % 7 + 20 + 3 * i);
  }
  EXPECT_GT(model.largest_batch.load(), 8u);
  ExpectAllFree();
}

// Holds the engine in layer 1 of a step.
struct Hold {
  absl::Notification reached, go;
  absl::Status At(int layer) {
    if (layer != 1 || reached.HasBeenNotified()) return absl::OkStatus();
    reached.Notify();
    go.WaitForNotification();
    return absl::OkStatus();
  }
};

TEST_F(EngineTest, ACancelledSequenceIsFreeBeforeTheStepEnds) {
  Hold first;
  absl::Notification last_layer, end;
  model.before_decode_layer = [&](int layer, std::size_t sequences) {
    if (sequences == 2 && layer == 1) return first.At(layer);
    if (first.reached.HasBeenNotified() && layer == 2 && !last_layer.HasBeenNotified()) {
      last_layer.Notify();
      end.WaitForNotification();
    }
    return absl::OkStatus();
  };
  SequenceRequest a = Make(3, 200), b = Make(5, 200);
  const TransferId id = a.id;
  const auto cancelled = Submit(std::move(a));
  const auto stays = Submit(std::move(b));
  ASSERT_TRUE(first.reached.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  engine->Cancel(id, absl::CancelledError("gone"));
  engine->Cancel(id, absl::CancelledError("again"));
  first.go.Notify();
  ASSERT_TRUE(last_layer.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  EXPECT_EQ(store->sequences(), 1u);  // in the middle of the step
  end.Notify();
  EXPECT_TRUE(absl::IsCancelled(cancelled->Wait()));
  EXPECT_TRUE(stays->Wait().ok());
  EXPECT_EQ(stays->tokens().size(), 199u);
  EXPECT_EQ(stays->tokens().back(), 204);
  ExpectAllFree();
}

TEST_F(EngineTest, WhenAllAreCancelledTheStepEnds) {
  Hold hold;
  model.before_decode_layer = [&](int layer, std::size_t) { return hold.At(layer); };
  SequenceRequest request = Make(3, 200);
  const TransferId id = request.id;
  const auto one = Submit(std::move(request));
  ASSERT_TRUE(hold.reached.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  EXPECT_GE(engine->load().stall, absl::ZeroDuration());
  EXPECT_EQ(engine->load().running, 1u);
  EXPECT_FALSE(engine->WaitIdle(absl::ZeroDuration()));
  engine->Cancel(id, absl::CancelledError("gone"));
  hold.go.Notify();
  EXPECT_TRUE(absl::IsCancelled(one->Wait()));
  EXPECT_TRUE(engine->WaitIdle(fakes::kWaitLimit));
  ExpectAllFree();
}

TEST_F(EngineTest, CancelOfWhatIsNotThereDoesNothing) {
  engine->Cancel(TransferId::Random(), absl::CancelledError("gone"));
  EXPECT_TRUE(Submit(Make(3, 5))->Wait().ok());
}

TEST_F(EngineTest, AFailedStepFailsItsSequencesOnly) {
  std::atomic<bool> fail{true};
  model.before_decode_layer = [&](int layer, std::size_t) {
    return layer == 2 && fail.exchange(false) ? absl::InternalError("no") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsInternal(Submit(Make(3, 5))->Wait()));
  EXPECT_TRUE(Submit(Make(3, 5))->Wait().ok());
  ExpectAllFree();
}

TEST_F(EngineTest, AfterTheLossOfItsDeviceItsSequencesAreToRunElsewhere) {
  model.before_decode_layer = [&](int layer, std::size_t) {
    device_lost = layer == 2;
    return device_lost ? absl::InternalError("no") : absl::OkStatus();
  };
  const absl::Status status = Submit(Make(3, 5))->Wait();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("illegal address"));
  ExpectAllFree();
}

TEST_F(EngineTest, AValueThatNoCodecHoldsEndsItsSequenceOnly) {
  model.nan_layer = 1;
  model.nan_token = 70;
  const auto bad = Submit(Make(60, 300));  // reaches position 70, flushes it later
  const auto good = Submit(Make(3, 40));
  const absl::Status status = bad->Wait();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 1"));
  EXPECT_TRUE(good->Wait().ok());
  ExpectAllFree();
}

TEST_F(EngineTest, StopEndsEverything) {
  const auto one = Submit(Make(3, 2000));
  one->WaitTokens(1);
  engine->Stop();
  EXPECT_TRUE(absl::IsUnavailable(one->Wait()));
  EXPECT_TRUE(absl::IsUnavailable(Submit(Make(3, 5))->Wait()));
  engine->Stop();
  ExpectAllFree();
}

}  // namespace
}  // namespace kvferry::decode
