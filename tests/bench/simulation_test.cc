#include "bench/quality/simulation.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "bench/quality/host_device.h"
#include "bench/quality/passage_tensors.h"
#include "bench/quality/quality.h"
#include "bench/quality/reference_quantize.h"
#include "bench/quality/report.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/lut.h"
#include "model/rope.h"
#include "tests/bench/tiny_model.h"
#include "tests/kvcodec/codebook_samples.h"
#include "tests/model/temp_folder.h"

namespace kvferry::bench {
namespace {

using Axis = TensorScheme::Axis;
using Levels = TensorScheme::Levels;

at::Tensor RandomBlock(int heads, int tokens) {
  at::manual_seed(3);
  // Keys have channels that are far from zero, and all values are fp16.
  const at::Tensor x = at::randn({heads, tokens, 64}) + 3 * at::randn({heads, 1, 64});
  return x.to(at::kHalf).to(at::kFloat);
}

class ReferenceTest : public ::testing::Test {
 protected:
  // What the CPU backend gives back of one block; K and V are the same values.
  std::pair<at::Tensor, at::Tensor> Production(const char* name, const at::Tensor& x) {
    return Production(codec::FindCodec(name)->ForLayer(0, 64).value(), x);
  }
  std::pair<at::Tensor, at::Tensor> Production(const codec::BlockSpec& spec, const at::Tensor& x) {
    const at::Tensor half = x.to(at::kHalf).contiguous();
    const auto* data = static_cast<const std::uint16_t*>(half.const_data_ptr());
    const int heads = static_cast<int>(x.size(0));
    struct alignas(128) Line {
      std::byte bytes[128];
    };
    std::vector<Line> page(codec::PageBytes(spec, heads) / sizeof(Line));
    const std::span<std::byte> bytes(page.front().bytes, page.size() * sizeof(Line));
    const codec::KvView view = {.k = data,
                                .v = data,
                                .kv_heads = heads,
                                .tokens = 64,
                                .head_dim = 64,
                                .head_stride = 64 * 64,
                                .token_stride = 64};
    EXPECT_TRUE(backend_->Quantize(view, spec, {}, bytes).ok());
    const at::Tensor k = at::empty({heads, 64, 64}), v = at::empty({heads, 64, 64});
    const auto values = static_cast<std::size_t>(k.numel());
    EXPECT_TRUE(backend_
                    ->Dequantize(bytes, spec, {}, heads,
                                 std::span(k.mutable_data_ptr<float>(), values),
                                 std::span(v.mutable_data_ptr<float>(), values))
                    .ok());
    return {k, v};
  }

  static double Largest(const at::Tensor& x) { return x.abs().max().item<double>(); }

  const std::unique_ptr<codec::Backend> backend_ = codec::CreateCpuBackend({}).value();
  const Rotations none_;
};

TEST_F(ReferenceTest, KiviGivesTheValuesOfTheBytes) {
  const at::Tensor x = RandomBlock(3, 64);
  for (const auto& [name, bits, group] :
       {std::tuple("kivi-2", 2, 32), {"kivi-4", 4, 32}, {"kivi-4-g64", 4, 64}}) {
    const auto [k, v] = Production(name, x);
    const TensorScheme keys = {.bits = bits, .axis = Axis::kChannel, .group = group};
    const TensorScheme values = {.bits = bits, .axis = Axis::kToken, .group = group};
    // One more code is at least a tenth.
    EXPECT_LT(Largest(QuantizeDequantize(x, keys, 64, none_) - k), 1e-5) << name;
    EXPECT_LT(Largest(QuantizeDequantize(x, values, 64, none_) - v), 1e-5) << name;
    EXPECT_GT(Largest(x - k), 0.1);
  }
}

TEST_F(ReferenceTest, Nf4GivesTheValuesOfTheBytes) {
  const at::Tensor x = RandomBlock(2, 64);
  const TensorScheme scheme = {.bits = 4, .group = 64, .levels = Levels::kNf4Table};
  EXPECT_LT(Largest(QuantizeDequantize(x, scheme, 64, none_) - Production("nqkv-nf4", x).first),
            1e-5);
}

TEST_F(ReferenceTest, CoupledChannelsGiveTheValuesOfTheBytes) {
  const at::Tensor x = RandomBlock(2, 64);
  for (const codec::Coupling& coupling : {codec::Coupling{2, 8}, {4, 8}, {8, 10}, {2, 4}}) {
    const auto books = codec::MakeCodebooks({2, 2, 64, coupling}, 5);
    const auto [k, v] = Production(codec::CoupledSpec(*books, 1), x);
    Rotations rotations = {at::empty({64, 32}), at::empty({64, 32})};  // of positions 0 to 63
    for (int token = 0; token < 64; ++token) {
      const auto at = static_cast<std::ptrdiff_t>(token) * 32;
      books->rotation().Angles(token, rotations.cos.mutable_data_ptr<float>() + at,
                               rotations.sin.mutable_data_ptr<float>() + at);
    }
    // Another centroid that is as near is as good: the distances are compared.
    const at::Tensor keys = NearestCentroids(x, *books, 1, false, rotations);
    const at::Tensor values = NearestCentroids(x, *books, 1, true, none_);
    EXPECT_LT(Largest((keys - x).square().sum(2) - (k - x).square().sum(2)), 1e-2);
    EXPECT_LT(Largest((values - x).square().sum(2) - (v - x).square().sum(2)), 1e-2);
    EXPECT_GT((keys - k).abs().lt(1e-4).to(at::kFloat).mean().item<double>(), 0.999);
    EXPECT_GT((values - v).abs().lt(1e-4).to(at::kFloat).mean().item<double>(), 0.999);
    EXPECT_GT(Largest(x - k), 0.1);
  }
}

TEST_F(ReferenceTest, BlocksAcrossHeadsFollowTheTokensVectors) {
  // Each token's 3 * 64 values are one after another: 4 tokens are 3 blocks.
  at::Tensor x = at::zeros({3, 4, 64});
  x.index_put_({1, 1, 0}, 8.0f);   // place 192 + 64 = 256: block 1
  x.index_put_({0, 0, 0}, 0.5f);   // block 0
  x.index_put_({2, 3, 63}, 0.3f);  // the last of block 2
  const TensorScheme scheme = {
      .bits = 4, .axis = Axis::kHeads, .group = 256, .levels = Levels::kNf4Table};
  const at::Tensor y = QuantizeDequantize(x, scheme, 1, none_);
  EXPECT_LT(Largest(x - y), 1e-3);  // each is the largest of its own block
  // In one block with 8, a half is nothing.
  const TensorScheme one = {
      .bits = 4, .axis = Axis::kHeads, .group = 512, .levels = Levels::kNf4Table};
  EXPECT_GT(std::abs(QuantizeDequantize(x, one, 1, none_).index({0, 0, 0}).item<float>() - 0.5f),
            0.1);
}

TEST_F(ReferenceTest, LevelsAreThoseOfTheTables) {
  for (const auto& [bits, table] :
       {std::pair(2, codec::LutTable::kLm2), {3, codec::LutTable::kLm3}}) {
    const at::Tensor levels = LloydMaxLevels(bits);
    for (int i = 0; i < 1 << bits; ++i) {
      EXPECT_NEAR(levels[i].item<float>(), codec::FindLut(table)->levels[i], 1e-3);
    }
  }
}

TEST_F(ReferenceTest, EveryFactorDoesWhatItIsFor) {
  const at::Tensor x = RandomBlock(2, 64);
  const auto error = [&](const TensorScheme& scheme) {
    return (QuantizeDequantize(x, scheme, 64, none_) - x).square().mean().item<double>();
  };
  const TensorScheme keys = {.bits = 2, .axis = Axis::kChannel};
  const TensorScheme tokens = {.bits = 2, .axis = Axis::kToken};
  const auto with = [](TensorScheme scheme, auto change) {
    change(scheme);
    return scheme;
  };
  EXPECT_LT(error(keys), error(tokens) / 2);  // the channels differ
  EXPECT_LT(error(with(keys, [](auto& s) { s.levels = Levels::kClipped; })), error(keys));
  EXPECT_LT(error(with(keys, [](auto& s) { s.levels = Levels::kLloydMax; })), error(keys));
  EXPECT_LT(error(with(keys, [](auto& s) { s.outliers = 0.05; })), error(keys));
  EXPECT_LT(error(with(tokens, [](auto& s) { s.block_means = true; })), error(tokens) / 2);
  EXPECT_NEAR(error(with(keys, [](auto& s) { s.scale_bits = 8; })) / error(keys), 1, 0.25);
  EXPECT_LT(error(with(tokens, [](auto& s) { s.rotated = true; })), error(tokens));
  EXPECT_EQ(error({}), 0);
}

TEST_F(ReferenceTest, KeysAreTurnedAsTheModelTurnsThem) {
  model::ModelConfig config;
  config.head_dim = 64;
  config.rope_base = 10000;
  const model::Rope rope(config);
  const Rotations rotations = MakeRotations(config, 64, at::kCPU);
  const at::Tensor x = RandomBlock(2, 64), turned = Turn(x, rotations);
  std::vector<float> cos(32), sin(32), head(64);
  rope.Angles(17, cos.data(), sin.data());
  for (int i = 0; i < 64; ++i) head[i] = x[1][17][i].item<float>();
  rope.Rotate(cos.data(), sin.data(), head.data());
  for (int i = 0; i < 64; ++i) EXPECT_NEAR(turned[1][17][i].item<float>(), head[i], 1e-5);
  EXPECT_LT(Largest(TurnBack(turned, rotations) - x), 1e-5);
  // Of keys that are the same in every token before RoPE, nothing is lost there.
  const at::Tensor same = Turn(x.narrow(1, 0, 1).expand({2, 64, 64}), rotations);
  TensorScheme scheme = {.bits = 2, .axis = Axis::kChannel};
  EXPECT_GT(Largest(QuantizeDequantize(same, scheme, 64, rotations) - same), 0.1);
  scheme.before_rope = true;
  EXPECT_LT(Largest(QuantizeDequantize(same, scheme, 64, rotations) - same), 0.01);
}

// A tiny model and a random text, through both paths.
class SimulationTest : public ::testing::Test {
 protected:
  SimulationTest() {
    const TinyModelFolder files(folder_.path());
    device_ = HostDevice::Create(model::Model::Load({.path = folder_.path(), .threads = 2}).value(),
                                 codec::CreateCpuBackend({.threads = 2}).value())
                  .value();
    std::mt19937_64 random(5);
    for (int i = 0; i < 1000; ++i) {
      text_.tokens.push_back(static_cast<std::int32_t>(random() % TinyModelFolder::kVocabulary));
    }
    text_.check = "0";
  }

  const model::TempFolder folder_;
  std::unique_ptr<HostDevice> device_;
  Text text_;
  const MeasureOptions sizes_ = {
      .prompt_tokens = 300, .decode_tokens = 150, .greedy_tokens = 0, .probe_tokens = 0};
};

TEST_F(SimulationTest, GivesWhatThePathThatServesGives) {
  const auto progress = [](std::string_view, int, int) {};
  const auto measure = Measure::Create(*device_, sizes_, progress);
  ASSERT_TRUE(measure.ok()) << measure.status();
  const Passage passage = SpreadPassages(text_.tokens, 450, 1)->front();
  const ExactPassage exact = measure->RunExact(passage).value();
  const auto simulation = Simulation::Create(*device_, device_->quantizer());
  ASSERT_TRUE(simulation.ok()) << simulation.status();
  const auto mean = [](const Record& record) {
    double sum = 0;
    for (const double kl : record.kl) sum += kl;
    return sum / static_cast<double>(record.kl.size());
  };
  ProbeTraces traces;
  for (const char* name : {"kivi-2", "kivi-4", "kivi-2:recent=64,sinks=1", "nqkv-nf4", "lm2"}) {
    const codec::Codec codec = codec::FindCodec(name).value();
    const auto real =
        measure->RunCodec(codec, std::span(&passage, 1), std::span(&exact, 1), traces);
    ASSERT_TRUE(real.ok()) << real.status();
    const auto simulated = (*simulation)->Run({.name = name, .production = codec}, passage, exact);
    ASSERT_TRUE(simulated.ok()) << simulated.status();
    ASSERT_EQ(simulated->kl.size(), real->front().kl.size());
    EXPECT_NEAR(mean(*simulated) / mean(real->front()), 1, 0.01) << name;
  }
  // The plain reference of kivi-2, without a byte of it.
  const SimulatedCodec reference = {.name = "reference",
                                    .k = {.bits = 2, .axis = Axis::kChannel},
                                    .v = {.bits = 2, .axis = Axis::kToken}};
  const SimulatedCodec bytes = {.name = "bytes", .production = codec::FindCodec("kivi-2").value()};
  EXPECT_NEAR(mean((*simulation)->Run(reference, passage, exact).value()) /
                  mean((*simulation)->Run(bytes, passage, exact).value()),
              1, 1e-3);
  // 16 bits lose what fp16 loses; one layer less than both, one of one head alike.
  EXPECT_LT(mean((*simulation)->Run({.name = "none"}, passage, exact).value()), 1e-5);
  SimulatedCodec one = reference;
  one.only_layer = 1;
  const double of_layer = mean((*simulation)->Run(one, passage, exact).value());
  EXPECT_GT(of_layer, 1e-4);
  EXPECT_LT(of_layer, mean((*simulation)->Run(reference, passage, exact).value()));
  one.only_head = 0;  // there is one
  EXPECT_EQ(mean((*simulation)->Run(one, passage, exact).value()), of_layer);
}

TEST_F(SimulationTest, BitsAreThoseOfTheBuffers) {
  const auto progress = [](std::string_view, int, int) {};
  const Measure measure = Measure::Create(*device_, sizes_, progress).value();
  const Passage passage = SpreadPassages(text_.tokens, 450, 1)->front();
  const ExactPassage exact = measure.RunExact(passage).value();
  const codec::Codec codec = codec::FindCodec("kivi-4").value();
  ProbeTraces traces;
  const auto real = measure.RunCodec(codec, std::span(&passage, 1), std::span(&exact, 1), traces);
  ASSERT_TRUE(real.ok()) << real.status();
  const Record& record = real->front();
  const double bits =
      8.0 * static_cast<double>(record.resident_bytes) / (2.0 * 2 * 64 * record.resident_tokens);
  const SimulatedCodec reference = {.k = {.bits = 4, .axis = Axis::kChannel},
                                    .v = {.bits = 4, .axis = Axis::kToken}};
  for (const SimulatedCodec& row : {reference, SimulatedCodec{.production = codec}}) {
    EXPECT_NEAR(ResidentBits(row, record.resident_tokens, device_->geometry()).value(), bits,
                1e-12);
  }
}

TEST_F(SimulationTest, TheReportGoesOnAndHasEveryLayer) {
  ReportOptions options = {.state = (folder_ / "state.jsonl").string(),
                           .groups = {"layers", "rules"},
                           .measure = sizes_,
                           .passages = 2};
  int measured = 0;
  const auto progress = [&](std::string_view what, int, int) {
    measured += what.find("report") != std::string_view::npos;
  };
  const auto run = [&] {
    return RunReport(options, *device_, device_->quantizer(), text_, progress);
  };
  const auto first = run();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->rows.size(), 6u + 8);
  for (const ReportRow& row : first->rows) {
    EXPECT_GT(row.kl.value, 1e-5) << row.codec.name;
    EXPECT_EQ(row.positions, 2u * 149);
    EXPECT_LT(row.bits, 16);
  }
  EXPECT_EQ(measured, 2 * 14);
  ASSERT_EQ(first->correlations.size(), 2u);
  for (const LayerCorrelations& layer : first->correlations) {
    for (const Correlation& one : {layer.keys_before_rope, layer.keys, layer.values}) {
      EXPECT_GT(one.mean, 0);
      EXPECT_LT(one.mean, 1);
      EXPECT_GT(one.gain_bits, 0);
    }
  }
  const auto again = run();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToJson(*again), ToJson(*first));
}

TEST_F(SimulationTest, PartsOfAReportAreEveryNthRow) {
  ReportOptions options = {.state = (folder_ / "report.jsonl").string(),
                           .groups = {"axes"},
                           .measure = {.prompt_tokens = 200, .decode_tokens = 150},
                           .passages = 2};
  int measured = 0;
  const auto progress = [&](std::string_view what, int, int) {
    measured += what.find("report") != std::string_view::npos;
  };
  for (const int index : {0, 1}) {  // one after the other into one file: nothing is measured twice
    const absl::Status status = MeasureReportPart(options, {.index = index, .count = 2}, *device_,
                                                  device_->quantizer(), text_, progress);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(measured, 2 * 3 * (index + 1));
  }
  const auto summed = RunReport(options, *device_, device_->quantizer(), text_, progress);
  ASSERT_TRUE(summed.ok()) << summed.status();
  options.state = (folder_ / "whole.jsonl").string();
  const auto whole = RunReport(options, *device_, device_->quantizer(), text_, progress);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(summed->rows.size(), 6u);
  for (std::size_t i = 0; i < summed->rows.size(); ++i) {
    EXPECT_EQ(summed->rows[i].kl.value, whole->rows[i].kl.value);
    EXPECT_EQ(summed->rows[i].ratio.value, whole->rows[i].ratio.value);
  }
}

}  // namespace
}  // namespace kvferry::bench
