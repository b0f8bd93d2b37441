#include <atomic>
#include <cmath>
#include <thread>

#include "gmock/gmock.h"
#include "tests/kvcodec/kv_samples.h"

namespace kvferry::codec {
namespace {

// One sequence and everything that it points to.
struct Sequence {
  KvSample sinks, window;
  std::vector<std::unique_ptr<GuardedPage>> pages;
  std::vector<const std::byte*> page_pointers;
  std::vector<PlainHead> heads;  // what attention should see, dequantized

  SequenceKv view() const { return {sinks.view, page_pointers, window.view}; }
};

struct Shape {
  int sinks, blocks, window;
};

Sequence MakeSequence(const Backend& backend, const BlockSpec& spec, int kv_heads, Shape shape,
                      std::uint32_t seed) {
  const Raw16 type = spec.kind == BlockKind::kRaw16 ? spec.raw_type : Raw16::kFp16;
  Sequence sequence;
  sequence.heads.resize(kv_heads);
  sequence.sinks = MakeKv(kv_heads, shape.sinks, spec.head_dim, type, seed);
  sequence.window = MakeKv(kv_heads, shape.window, spec.head_dim, type, seed + 1);
  for (int h = 0; h < kv_heads; ++h) AppendRaw(sequence.sinks.view, h, sequence.heads[h]);
  for (int block = 0; block < shape.blocks; ++block) {
    const KvSample kv = MakeKv(kv_heads, 64, spec.head_dim, type, seed + 2 + block);
    auto page = std::make_unique<GuardedPage>(PageBytes(spec, kv_heads));
    EXPECT_TRUE(backend.Quantize(kv.view, spec, {}, page->span()).ok());
    std::vector<float> k(std::size_t{64} * kv_heads * spec.head_dim), v(k.size());
    EXPECT_TRUE(backend.Dequantize(page->span(), spec, {}, kv_heads, k, v).ok());
    const std::size_t part = std::size_t{64} * spec.head_dim;
    for (int h = 0; h < kv_heads; ++h) {
      sequence.heads[h].k.insert(sequence.heads[h].k.end(), k.begin() + h * part,
                                 k.begin() + (h + 1) * part);
      sequence.heads[h].v.insert(sequence.heads[h].v.end(), v.begin() + h * part,
                                 v.begin() + (h + 1) * part);
    }
    sequence.page_pointers.push_back(page->data());
    sequence.pages.push_back(std::move(page));
  }
  for (int h = 0; h < kv_heads; ++h) AppendRaw(sequence.window.view, h, sequence.heads[h]);
  return sequence;
}

struct Call {
  BlockSpec spec;
  int q_heads, kv_heads;
  std::vector<SequenceKv> sequences;
  std::vector<float> q;
  float scale;

  AttentionArgs args(float* out) const {
    return {.spec = spec,
            .q_heads = q_heads,
            .kv_heads = kv_heads,
            .scale = scale,
            .sequences = sequences,
            .q = q.data(),
            .out = out};
  }
};

Call MakeCall(const BlockSpec& spec, int q_heads, int kv_heads,
              const std::vector<const Sequence*>& sequences, float q_size = 1) {
  Call call = {.spec = spec, .q_heads = q_heads, .kv_heads = kv_heads};
  call.scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  for (const Sequence* sequence : sequences) {
    call.sequences.push_back(sequence->view());
    for (int i = 0; i < q_heads * spec.head_dim; ++i) call.q.push_back(normal(random) * q_size);
  }
  return call;
}

std::vector<float> Attend(const Backend& backend, const Call& call) {
  std::vector<float> out(call.q.size() + 16, -77.0f);
  const absl::Status status = backend.DecodeAttention(call.args(out.data()));
  EXPECT_TRUE(status.ok()) << status;
  for (std::size_t i = call.q.size(); i < out.size(); ++i) EXPECT_EQ(out[i], -77.0f);
  out.resize(call.q.size());
  return out;
}

// The bound of docs/format.md: ||out - exact|| <= bound * ||exact|| per query head.
void ExpectExact(const std::vector<float>& out, const Call& call,
                 const std::vector<const Sequence*>& sequences, double bound,
                 const std::string& what) {
  const int d = call.spec.head_dim, group = call.q_heads / call.kv_heads;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    for (int head = 0; head < call.q_heads; ++head) {
      const std::size_t at = (s * call.q_heads + head) * d;
      const std::vector<double> want =
          ExactAttention(&call.q[at], sequences[s]->heads[head / group], d, call.scale);
      double error = 0, norm = 0;
      for (int c = 0; c < d; ++c) {
        error += (out[at + c] - want[c]) * (out[at + c] - want[c]);
        norm += want[c] * want[c];
      }
      ASSERT_LE(std::sqrt(error), bound * std::sqrt(norm))
          << what << " sequence " << s << " head " << head;
    }
  }
}

constexpr double kBound = 2e-3;
constexpr double kLutBound = 1e-5;  // levels and products are fp32

class AttentionTest : public testing::TestWithParam<std::string> {
 protected:
  void Check(const BlockSpec& spec, int q_heads, int kv_heads, const std::vector<Shape>& shapes,
             float q_size = 1, double bound = kBound) {
    std::vector<Sequence> sequences;
    std::vector<const Sequence*> pointers;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      sequences.push_back(MakeSequence(*backend_, spec, kv_heads, shapes[i],
                                       static_cast<std::uint32_t>(1000 * i + 1)));
    }
    for (const Sequence& sequence : sequences) pointers.push_back(&sequence);
    const Call call = MakeCall(spec, q_heads, kv_heads, pointers, q_size);
    ExpectExact(Attend(*backend_, call), call, pointers, bound, SpecName(spec));
  }

  std::unique_ptr<Backend> backend_ = MakeNamedBackend(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, testing::ValuesIn(BackendNames()),
                         BackendTestName);

TEST_P(AttentionTest, EveryBlockKindAndShape) {
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (const BlockSpec& spec : AllScalarSpecs(bits, bits)) Check(spec, 3, 1, {{4, 2, 70}});
  }
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const Lut& lut : kLuts)
      Check(LutSpec(lut.table, head_dim), 3, 1, {{4, 3, 65}}, 1, kLutBound);
    for (const BlockKind kind : {BlockKind::kInt8, BlockKind::kFp8}) {
      Check({.kind = kind, .head_dim = head_dim}, 4, 2, {{4, 3, 65}});
    }
    for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
      Check({.kind = BlockKind::kRaw16, .raw_type = type, .head_dim = head_dim}, 4, 2,
            {{4, 3, 65}});
    }
  }
}

TEST_P(AttentionTest, EveryGroupSize) {
  for (const int group : {1, 2, 3, 4, 5, 7, 8, 16}) {
    Check(ScalarSpec(128, 4, 2, 64, 128), 2 * group, 2, {{4, 2, 64}});
    Check({.kind = BlockKind::kInt8, .head_dim = 64}, 2 * group, 2, {{4, 2, 64}});
    Check({.kind = BlockKind::kFp8, .head_dim = 64}, 2 * group, 2, {{4, 2, 64}});
    for (const Lut& lut : kLuts) {
      Check(LutSpec(lut.table, 128), 2 * group, 2, {{4, 2, 64}}, 1, kLutBound);
    }
  }
}

TEST_P(AttentionTest, EveryLength) {
  const BlockSpec spec = ScalarSpec(64, 4, 4, 64, 64);
  std::vector<Shape> shapes;
  for (const int window : {1, 2, 3, 7, 8, 9, 15, 63, 64, 65, 127, 128})
    shapes.push_back({0, 0, window});
  for (const int blocks : {1, 2, 15, 16, 17, 33}) shapes.push_back({4, blocks, 64});
  shapes.push_back({4, 1, 0});
  shapes.push_back({0, 1, 0});
  shapes.push_back({1, 0, 0});
  Check(spec, 9, 3, shapes);
  Check(LutSpec(LutTable::kNf4, 64), 9, 3, shapes, 1, kLutBound);
}

TEST_P(AttentionTest, SharpSoftmax) {
  for (const int bits : {2, 4, 8})
    Check(ScalarSpec(128, bits, bits, 64, 128), 4, 1, {{4, 20, 64}}, 3);
  for (const Lut& lut : kLuts) Check(LutSpec(lut.table, 96), 4, 1, {{4, 20, 64}}, 3, 1e-4);
}

TEST_P(AttentionTest, ShiftedKeysFarFromZero) {
  for (const int head_dim : {64, 96, 128, 256}) {
    const BlockSpec spec = LutSpec(LutTable::kAnf4, head_dim);
    Sequence sequence = MakeSequence(*backend_, spec, 1, {0, 3, 0}, 1);
    PlainHead& head = sequence.heads[0];
    for (int block = 0; block < 3; ++block) {  // each with other zeros
      KvSample kv = MakeKv(1, 64, head_dim, Raw16::kFp16, 3 + block);
      for (int i = 0; i < 64 * head_dim; ++i) {
        const auto shift = static_cast<float>((i % head_dim + block) % 16 == 5 ? 8 : 0);
        kv.k[i] = HalfFromFloat(FloatFromHalf(kv.k[i]) + shift);
      }
      const std::size_t at = std::size_t{64} * head_dim * block, part = std::size_t{64} * head_dim;
      ASSERT_TRUE(backend_->Quantize(kv.view, spec, {}, sequence.pages[block]->span()).ok());
      ASSERT_TRUE(backend_
                      ->Dequantize(sequence.pages[block]->span(), spec, {}, 1,
                                   std::span(head.k).subspan(at, part),
                                   std::span(head.v).subspan(at, part))
                      .ok());
    }
    const Call call = MakeCall(spec, 5, 1, {&sequence});
    ExpectExact(Attend(*backend_, call), call, {&sequence}, 1e-4, SpecName(spec));
  }
}

TEST_P(AttentionTest, RepeatsToTheBit) {
  const BlockSpec spec = ScalarSpec(128, 2, 2, 64, 128);
  const Sequence a = MakeSequence(*backend_, spec, 2, {4, 40, 64}, 5);
  const Sequence b = MakeSequence(*backend_, spec, 2, {4, 3, 64}, 6);
  const Call call = MakeCall(spec, 8, 2, {&a, &b});
  const std::vector<float> once = Attend(*backend_, call);
  EXPECT_EQ(Attend(*backend_, call), once);
  for (const int threads : {2, 3, 8}) {
    EXPECT_EQ(Attend(*MakeNamedBackend(GetParam(), threads), call), once) << threads << " threads";
  }
  // A sequence does not feel its neighbours.
  Call alone = MakeCall(spec, 8, 2, {&b});
  alone.q.assign(call.q.begin() + 8 * 128, call.q.end());
  EXPECT_EQ(Attend(*backend_, alone), std::vector<float>(once.begin() + 8 * 128, once.end()));
}

TEST_P(AttentionTest, CallsFromSeveralThreads) {
  const std::unique_ptr<Backend> shared = MakeNamedBackend(GetParam(), 3);
  const BlockSpec spec = ScalarSpec(64, 2, 2, 64, 64);
  const Sequence sequence = MakeSequence(*shared, spec, 1, {4, 20, 64}, 5);
  const Call call = MakeCall(spec, 3, 1, {&sequence});
  const std::vector<float> want = Attend(*shared, call);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 10; ++n) {
        std::vector<float> out(call.q.size());
        if (!shared->DecodeAttention(call.args(out.data())).ok() || out != want) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(AttentionTest, LargeValuesAndScales) {
  const BlockSpec spec = ScalarSpec(128, 4, 4, 64, 128);
  for (const float v_size : {1e-3f, 30.0f, 6e4f}) {
    KvSample kv = MakeKv(1, 64, 128, Raw16::kFp16, 3);
    for (std::uint16_t& v : kv.v) v = HalfFromFloat(std::tanh(FloatFromHalf(v)) * v_size);
    Sequence sequence = MakeSequence(*backend_, spec, 1, {0, 1, 0}, 1);
    ASSERT_TRUE(backend_->Quantize(kv.view, spec, {}, sequence.pages[0]->span()).ok());
    PlainHead& head = sequence.heads[0];
    ASSERT_TRUE(backend_->Dequantize(sequence.pages[0]->span(), spec, {}, 1, head.k, head.v).ok());
    const Call call = MakeCall(spec, 4, 1, {&sequence});
    ExpectExact(Attend(*backend_, call), call, {&sequence}, kBound,
                "V of " + std::to_string(v_size));
  }
}

TEST_P(AttentionTest, WrongCallsAreRefused) {
  const BlockSpec spec = ScalarSpec(64, 2, 2, 64, 64);
  const Sequence sequence = MakeSequence(*backend_, spec, 2, {4, 1, 8}, 5);
  const Call good = MakeCall(spec, 4, 2, {&sequence});
  std::vector<float> out(good.q.size());
  const auto expect_refused = [&](auto change) {
    Call call = good;
    AttentionArgs args = call.args(out.data());
    change(call, args);
    args.sequences = call.sequences;
    EXPECT_EQ(backend_->DecodeAttention(args).code(), absl::StatusCode::kInvalidArgument);
  };
  expect_refused([](Call&, AttentionArgs& args) { args.q_heads = 3; });
  expect_refused([](Call&, AttentionArgs& args) { args.kv_heads = 0; });
  expect_refused([](Call&, AttentionArgs& args) { args.spec.head_dim = 80; });
  expect_refused([](Call&, AttentionArgs& args) { args.spec.head_dim = 128; });
  expect_refused([](Call&, AttentionArgs& args) { args.out = nullptr; });
  expect_refused([](Call& call, AttentionArgs&) { call.sequences[0].window.k = nullptr; });
  expect_refused([](Call& call, AttentionArgs&) { call.sequences[0] = {}; });
  const std::byte* crooked[] = {sequence.page_pointers[0] + 4};
  expect_refused([&](Call& call, AttentionArgs&) { call.sequences[0].pages = crooked; });
  Call empty = good;
  empty.sequences.clear();
  EXPECT_TRUE(backend_->DecodeAttention(empty.args(out.data())).ok());
}

TEST(CpuBackendTest, OptionsAreChecked) {
  EXPECT_FALSE(CreateCpuBackend({.threads = 0}).ok());
  EXPECT_FALSE(CreateCpuBackend({.threads = 100000}).ok());
  EXPECT_EQ(MakeBackend(true)->name(), "cpu-scalar");
  EXPECT_TRUE(MakeBackend(false)->Supports(ScalarSpec(96, 1, 3, 32, 32)).ok());
  EXPECT_EQ(MakeBackend(false)->Supports(ScalarSpec(96, 1, 3, 32, 64)).code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace kvferry::codec
