// Steps on a GPU against the same steps on CPUs: the caches hold the same bytes, and what the model
// gets from attention is the same up to rounding.
#include <cmath>
#include <functional>

#include "decode_node/device_step_runner.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_step_runner.h"
#include "kvcodec/half.h"
#include "tests/decode_node/device_machine.h"
#include "tests/decode_node/small_model.h"
#include "tests/model/temp_folder.h"

namespace kvferry::decode {
namespace {

constexpr int kQHeads = 8;

// A model that is nothing but attention: q, K and V are made up, the logits are what attention gave
// in all layers.
class EchoModel final : public model::Model {
 public:
  explicit EchoModel(DeviceMachine& machine) : machine_(machine) {
    config_.layers = kGeometry.layers;
    config_.q_heads = kQHeads;
    config_.kv_heads = kGeometry.kv_heads;
    config_.head_dim = kGeometry.head_dim;
    config_.vocabulary = kGeometry.layers * kQHeads * kGeometry.head_dim;
  }

  const model::ModelConfig& config() const override { return config_; }
  std::uint64_t weights_hash() const override { return 1; }
  absl::StatusOr<std::unique_ptr<model::PrefillSession>> StartPrefill(int, codec::Raw16) override {
    return absl::UnimplementedError("it only decodes");
  }

  absl::Status DecodeStep(std::span<const std::int32_t>, std::span<const std::int32_t> positions,
                          model::DecodeAttention& attention, std::span<float> logits) override {
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const Rows rows = MakeRows(layer, positions);
      std::vector<float> q, out(rows.q.size());
      for (const std::uint16_t x : rows.q) q.push_back(codec::FloatFromHalf(x));
      const absl::Status status =
          attention.AppendAndAttend(layer, q.data(), rows.k.data(), rows.v.data(), out.data());
      if (!status.ok()) return status;
      Echo(layer, out, logits);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<model::DeviceSteps>> StartDeviceSteps(
      int, model::DeviceDecodeAttention& attention) override {
    return std::make_unique<Steps>(*this, attention);
  }

  int fail_at_layer = -1;

 private:
  struct Rows {
    std::vector<std::uint16_t> q, k, v;
  };
  static Rows MakeRows(int layer, std::span<const std::int32_t> positions) {
    Rows rows;
    for (const std::int32_t position : positions) {
      const TokenKv kv = MakeToken(position);
      rows.k.insert(rows.k.end(), kv.k[layer].begin(), kv.k[layer].end());
      rows.v.insert(rows.v.end(), kv.v[layer].begin(), kv.v[layer].end());
      for (int head = 0; head < kQHeads; ++head) {
        for (int channel = 0; channel < kGeometry.head_dim; ++channel) {
          const std::uint16_t x = fakes::KvValue(true, layer, 16 + head, position, channel);
          rows.q.push_back(channel % 2 == 0 ? x : x | 0x8000);  // both signs
        }
      }
    }
    return rows;
  }
  static void Echo(int layer, std::span<const float> out, std::span<float> logits) {
    constexpr std::size_t kRow = std::size_t{kQHeads} * kGeometry.head_dim;
    for (std::size_t i = 0; i * kRow < out.size(); ++i) {
      std::copy_n(out.begin() + i * kRow, kRow,
                  logits.begin() + (i * kGeometry.layers + layer) * kRow);
    }
  }

  class Steps final : public model::DeviceSteps {
   public:
    Steps(EchoModel& model, model::DeviceDecodeAttention& attention)
        : model_(model), machine_(model.machine_), attention_(attention) {}

    absl::Status SetInputs(std::span<const std::int32_t>,
                           std::span<const std::int32_t> positions) override {
      positions_.assign(positions.begin(), positions.end());
      logits_.resize(positions.size() * model_.config().vocabulary);
      return absl::OkStatus();
    }
    absl::Status Enqueue() override {
      for (int layer = 0; layer < kGeometry.layers; ++layer) {
        if (layer == model_.fail_at_layer) return absl::InternalError("the model fails");
        const Rows rows = MakeRows(layer, positions_);
        const auto q = machine_.Upload(rows.q), k = machine_.Upload(rows.k),
                   v = machine_.Upload(rows.v), out = machine_.Upload(rows.q);
        const absl::Status status =
            attention_.AppendAndAttend(layer, q.as<std::uint16_t>(), k.as<std::uint16_t>(),
                                       v.as<std::uint16_t>(), out.as<std::uint16_t>());
        if (!status.ok()) return status;
        std::vector<float> values;
        for (const std::uint16_t x : machine_.Download(out.as<std::uint16_t>(), rows.q.size())) {
          values.push_back(codec::FloatFromHalf(x));
        }
        Echo(layer, values, logits_);
      }
      return absl::OkStatus();
    }
    absl::Status FetchLogits(std::span<float> logits) override {
      std::copy(logits_.begin(), logits_.end(), logits.begin());
      return absl::OkStatus();
    }
    std::uint64_t memory_epoch() const override { return 0; }

   private:
    EchoModel& model_;
    DeviceMachine& machine_;
    model::DeviceDecodeAttention& attention_;
    std::vector<std::int32_t> positions_;
    std::vector<float> logits_;
  };

  DeviceMachine& machine_;
  model::ModelConfig config_;
};

class DeviceStepRunnerTest : public CacheStoreTest<DeviceMachine> {
 protected:
  static constexpr int kMaxSequences = 4;

  void Start(const char* codec) {
    model = std::make_unique<EchoModel>(machine);
    Start(codec, *model, *model, false);  // its steps wait: no graph has them
  }

  void Start(const char* codec, model::Model& device_model, model::Model& host_model, bool graphs) {
    StartStore(codec);
    auto made =
        DeviceStepRunner::Create({.max_sequences = kMaxSequences, .graphs = graphs}, device_model,
                                 *store, machine.stream(), kernels::DecodeAttention::Create);
    ASSERT_TRUE(made.ok()) << made.status();
    runner = *std::move(made);
    host_store = CacheStore::Create({.codec = TestCodec(codec),
                                     .geometry = kGeometry,
                                     .pool_bytes = std::uint64_t{1} << 20},
                                    host_memory)
                     .value();
    host_runner = std::make_unique<HostStepRunner>(host_model, *host_store, *backend);
  }

  // The same prompt in both caches.
  std::unique_ptr<StoredSequence> AdoptOnHost(int tokens, int max_new_tokens) {
    std::swap(store, host_store);
    auto sequence = AdoptPrompt(tokens, max_new_tokens);
    std::swap(store, host_store);
    return sequence;
  }

  static std::vector<float> Step(StepRunner& runner, CacheStore& store,
                                 std::vector<StoredSequence*> sequences) {
    std::vector<std::int32_t> tokens, positions;
    for (const StoredSequence* sequence : sequences) {
      positions.push_back(sequence->tokens());
      tokens.push_back(positions.back() * 7 % SmallModel::kVocabulary);
    }
    const auto step = runner.Step(
        {.tokens = tokens, .positions = positions, .sequences = sequences, .drop_cancelled = [] {
         }});
    EXPECT_TRUE(step.ok()) << step.status();
    if (!step.ok()) return {};
    const std::vector<float> logits(step->begin(), step->end());
    std::vector<StoredSequence*> full;
    for (StoredSequence* sequence : sequences) {
      if (sequence->MustFlush()) full.push_back(sequence);
    }
    for (const absl::Status& flushed : store.Flush(full)) EXPECT_TRUE(flushed.ok()) << flushed;
    return logits;
  }

  // Three sequences over flushes, of which one leaves; every step's logits differ by less than
  // `bound` of their norm. check: of the caches on the GPU at the end.
  void ExpectSameSteps(double bound, const std::function<void(const StoredSequence&)>& check) {
    std::vector<std::unique_ptr<StoredSequence>> owners;
    std::vector<StoredSequence*> here, there;
    for (const int prompt : {2, kSuiteTokens - 1, 70}) {
      owners.push_back(AdoptPrompt(prompt, 150));
      here.push_back(owners.back().get());
      owners.push_back(AdoptOnHost(prompt, 150));
      there.push_back(owners.back().get());
    }
    for (int step = 0; step < 140; ++step) {
      if (step == 100) here.erase(here.begin() + 1), there.erase(there.begin() + 1);
      const std::vector<float> got = Step(*runner, *store, here);
      const std::vector<float> want = Step(*host_runner, *host_store, there);
      ASSERT_EQ(got.size(), want.size());
      double error = 0, size = 0;
      for (std::size_t i = 0; i < want.size(); ++i) {
        error += std::pow(double{got[i]} - want[i], 2);
        size += std::pow(double{want[i]}, 2);
      }
      ASSERT_LT(std::sqrt(error / size), bound) << "step " << step;  // false for NaN
    }
    for (const StoredSequence* sequence : here) check(*sequence);
  }

  HostCacheMemory host_memory{*backend};
  std::unique_ptr<EchoModel> model;
  std::unique_ptr<CacheStore> host_store;
  std::unique_ptr<DeviceStepRunner> runner;
  std::unique_ptr<HostStepRunner> host_runner;
};

TEST_F(DeviceStepRunnerTest, StepsEqualThoseOnTheHost) {
  for (const char* codec : {"kivi-4-g64", "kivi-2-g64:layer.1=8/8", "fp16", "int8"}) {
    SCOPED_TRACE(codec);
    Start(codec);
    if (HasFatalFailure()) return;
    // What docs/kernels.md promises for a single head.
    ExpectSameSteps(5e-3, [&](const StoredSequence& sequence) {
      ExpectSameAsPrefill(sequence, sequence.tokens());
    });
    if (HasFatalFailure()) return;
  }
}

TEST_F(DeviceStepRunnerTest, AModelOnTheGpuStepsLikeOneOnTheHost) {
  const model::TempFolder folder;
  SmallModel::Write(folder.path());
  const auto on_host = model::Model::Load({.path = folder.path(), .threads = 1});
  ASSERT_TRUE(on_host.ok()) << on_host.status();
  const auto on_gpu = model::Model::Load(
      {.path = folder.path(), .device = "cuda:0", .stream = machine.stream().get()});
  ASSERT_TRUE(on_gpu.ok()) << on_gpu.status();
  for (const char* codec : {"fp16", "kivi-4-g64"}) {
    SCOPED_TRACE(codec);
    Start(codec, **on_gpu, **on_host, true);
    if (HasFatalFailure()) return;
    // K and V of both differ in the last bit, and then a few codes do.
    ExpectSameSteps(3e-2, [](const StoredSequence&) {});
    if (HasFatalFailure()) return;
  }
}

// What its launches are told to be, and how many there were.
struct Launches {
  int kind = 0, count = 0;
};

class CountedAttention final : public kernels::DecodeAttention {
 public:
  CountedAttention(std::unique_ptr<kernels::DecodeAttention> attention, Launches* launches)
      : attention_(std::move(attention)), launches_(launches) {}

  absl::Status Plan(std::span<const kernels::AttentionLength> lengths,
                    kernels::Stream& stream) override {
    return attention_->Plan(lengths, stream);
  }
  int launch_kind() const override { return launches_->kind; }
  absl::Status Launch(const kernels::AttentionLayer& layer, kernels::Stream& stream) override {
    ++launches_->count;
    return attention_->Launch(layer, stream);
  }

 private:
  const std::unique_ptr<kernels::DecodeAttention> attention_;
  Launches* const launches_;
};

TEST_F(DeviceStepRunnerTest, AGraphIsReplayedOnlyForTheLaunchesThatItHas) {
  const model::TempFolder folder;
  SmallModel::Write(folder.path());
  const auto on_gpu = model::Model::Load(
      {.path = folder.path(), .device = "cuda:0", .stream = machine.stream().get()});
  ASSERT_TRUE(on_gpu.ok()) << on_gpu.status();
  StartStore("kivi-4-g64");
  Launches launches;
  auto made = DeviceStepRunner::Create(
      {.max_sequences = kMaxSequences}, **on_gpu, *store, machine.stream(),
      [&](const kernels::AttentionConfig& config)
          -> absl::StatusOr<std::unique_ptr<kernels::DecodeAttention>> {
        auto attention = kernels::DecodeAttention::Create(config);
        if (!attention.ok()) return attention.status();
        return std::make_unique<CountedAttention>(*std::move(attention), &launches);
      });
  ASSERT_TRUE(made.ok()) << made.status();
  const auto sequence = AdoptPrompt(kSuiteTokens, 20);
  const auto launched = [&](int kind) {
    launches = {.kind = kind};
    Step(**made, *store, {sequence.get()});
    return launches.count;
  };
  for (const int kind : {0, 1}) {
    EXPECT_EQ(launched(kind), kGeometry.layers) << kind;  // as kernels
    EXPECT_EQ(launched(kind), kGeometry.layers) << kind;  // captured
    EXPECT_EQ(launched(kind), 0) << kind;
  }
  EXPECT_EQ(launched(0), 0);
}

TEST_F(DeviceStepRunnerTest, ACodecWithoutAttentionIsRefusedWithTheList) {
  StartStore("kivi-4-g64:layer.2=3/3");
  EchoModel echo(machine);
  const absl::Status status =
      DeviceStepRunner::Create({.max_sequences = kMaxSequences}, echo, *store, machine.stream(),
                               kernels::DecodeAttention::Create)
          .status();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  const std::string message(status.message());
  EXPECT_EQ(message.find("codec \"kivi-4-g64:layer.2=3/3\", layer 2, on cuda:0: "), 0u) << message;
  EXPECT_NE(message.find("K2V2-GK64-GV64"), std::string::npos) << message;
}

TEST_F(DeviceStepRunnerTest, AfterAnErrorNothingGoesOn) {
  Start("kivi-4-g64");
  if (HasFatalFailure()) return;
  auto sequence = AdoptPrompt(kSuiteTokens, 10);
  std::vector<StoredSequence*> one = {sequence.get()};
  std::vector<std::int32_t> position = {sequence->tokens()};
  model->fail_at_layer = 2;
  const absl::Status status = runner
                                  ->Step({.tokens = position,
                                          .positions = position,
                                          .sequences = one,
                                          .drop_cancelled = [] {}})
                                  .status();
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  sequence.reset();
  EXPECT_EQ(store->free_rows(), store->rows());
  // The next sequence takes the same buffer and rows.
  model->fail_at_layer = -1;
  sequence = AdoptPrompt(kSuiteTokens, 10);
  Step(*runner, *store, {sequence.get()});
  ExpectSameAsPrefill(*sequence, kSuiteTokens + 1);
}

TEST_F(DeviceStepRunnerTest, MoreSequencesThanAdmittedAreRefused) {
  Start("kivi-4-g64");
  if (HasFatalFailure()) return;
  std::vector<std::unique_ptr<StoredSequence>> owners;
  std::vector<StoredSequence*> sequences;
  for (int i = 0; i <= kMaxSequences; ++i) {
    owners.push_back(AdoptPrompt(10, 10));
    sequences.push_back(owners.back().get());
  }
  const std::vector<std::int32_t> positions(sequences.size(), 10);
  EXPECT_TRUE(absl::IsInternal(runner
                                   ->Step({.tokens = positions,
                                           .positions = positions,
                                           .sequences = sequences,
                                           .drop_cancelled = [] {}})
                                   .status()));
}

}  // namespace
}  // namespace kvferry::decode
