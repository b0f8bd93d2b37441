#include "kvcodec/codec.h"

#include <set>

#include "gmock/gmock.h"

namespace kvferry::codec {
namespace {

using testing::AllOf;
using testing::HasSubstr;

void ExpectRefused(std::string_view name, absl::StatusCode code, const std::string& part) {
  const absl::StatusOr<Codec> codec = FindCodec(name);
  ASSERT_FALSE(codec.ok()) << name;
  EXPECT_EQ(codec.status().code(), code) << name;
  EXPECT_THAT(std::string(codec.status().message()), HasSubstr(part)) << name;
}

TEST(CodecTest, EveryRegisteredCodecIsFoundByItsName) {
  std::set<std::uint64_t> hashes;
  for (const Codec& codec : RegisteredCodecs()) {
    const absl::StatusOr<Codec> found = FindCodec(codec.name);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->name, codec.name);
    EXPECT_EQ(found->Hash(), codec.Hash());
    hashes.insert(codec.Hash());
    for (const int head_dim : {64, 96, 128, 256}) {
      const absl::StatusOr<BlockSpec> spec = codec.ForLayer(0, head_dim);
      ASSERT_TRUE(spec.ok()) << codec.name << ": " << spec.status();
      EXPECT_EQ(BlockBytes(*spec) % 128, 0u);
    }
  }
  EXPECT_EQ(hashes.size(), RegisteredCodecs().size());
  EXPECT_TRUE(FindCodec(kDefaultCodec).ok());
}

TEST(CodecTest, PlainNamesAreThePapersAndG64IsOurs) {
  const Codec paper = FindCodec("kivi-k4v2").value();
  EXPECT_EQ(paper.k_group_tokens, 32);
  EXPECT_EQ(paper.v_group_channels, 32);
  EXPECT_EQ(paper.window, (WindowSpec{4, 128}));
  const Codec ours = FindCodec("kivi-k4v2-g64").value();
  EXPECT_EQ(ours.k_bits, 4);
  EXPECT_EQ(ours.v_bits, 2);
  EXPECT_EQ(ours.window, (WindowSpec{4, 64}));
  EXPECT_EQ(ours.ForLayer(0, 64)->v_group_channels, 64);
  EXPECT_EQ(ours.ForLayer(0, 96)->v_group_channels, 32);
  EXPECT_EQ(ours.ForLayer(0, 256)->v_group_channels, 128);
}

TEST(CodecTest, BitsPerValueCountScales) {
  EXPECT_DOUBLE_EQ(FindCodec("kivi-2-g64")->BitsPerValue(128), 2.375);
  EXPECT_DOUBLE_EQ(FindCodec("kivi-4-g64")->BitsPerValue(128), 4.375);
  EXPECT_DOUBLE_EQ(FindCodec("kivi-2")->BitsPerValue(128), 3.0);
  EXPECT_DOUBLE_EQ(FindCodec("kivi-4")->BitsPerValue(64), 5.0);
  EXPECT_DOUBLE_EQ(FindCodec("fp16")->BitsPerValue(64), 16.0);
  EXPECT_DOUBLE_EQ(FindCodec("int8")->BitsPerValue(64), 8.25);
  EXPECT_DOUBLE_EQ(FindCodec("fp8")->BitsPerValue(128), 8.125);
  EXPECT_DOUBLE_EQ(FindCodec("nqkv-nf4")->BitsPerValue(64), 4.25);
  EXPECT_DOUBLE_EQ(FindCodec("nqkv-nf4")->BitsPerValue(128), 4.125);
  EXPECT_DOUBLE_EQ(FindCodec("nqkv-nf4")->BitsPerValue(256), 4.0625);  // the paper's blocks of 256
  EXPECT_DOUBLE_EQ(FindCodec("anf4")->BitsPerValue(64), 4.375);  // a zero per channel and block
  EXPECT_DOUBLE_EQ(FindCodec("anf4")->BitsPerValue(128), 4.25);
  EXPECT_DOUBLE_EQ(FindCodec("nf3")->BitsPerValue(128), 3.125);
  EXPECT_DOUBLE_EQ(FindCodec("lm3")->BitsPerValue(128), 3.125);
  EXPECT_DOUBLE_EQ(FindCodec("lm2")->BitsPerValue(128), 2.125);
}

TEST(CodecTest, ParametersChangeTheCodecAndItsHash) {
  const Codec codec =
      FindCodec("kivi-2-g64:layer.31=2/4,recent=128,sinks=8,layer.0=8/8,v_group=64").value();
  EXPECT_EQ(codec.name, "kivi-2-g64:sinks=8,recent=128,v_group=64,layer.0=8/8,layer.31=2/4");
  EXPECT_EQ(codec.window, (WindowSpec{8, 128}));
  EXPECT_EQ(codec.ForLayer(0, 128)->k_bits, 8);
  EXPECT_EQ(codec.ForLayer(1, 128)->k_bits, 2);
  EXPECT_EQ(codec.ForLayer(31, 128)->v_bits, 4);
  EXPECT_EQ(FindCodec(codec.name)->Hash(), codec.Hash());
  std::set<std::uint64_t> hashes;
  for (const char* name :
       {"kivi-2-g64", "kivi-2-g64:sinks=8", "kivi-2-g64:recent=65", "kivi-2-g64:raw=bf16",
        "kivi-2-g64:k_bits=3", "kivi-2-g64:v_bits=3", "kivi-2-g64:k_group=32",
        "kivi-2-g64:v_group=32", "kivi-2-g64:layer.0=4/4", "kivi-2-g64:layer.1=4/4"}) {
    hashes.insert(FindCodec(name)->Hash());
  }
  EXPECT_EQ(hashes.size(), 10u);
}

TEST(CodecTest, NqkvKeepsNothingIn16BitsUnlessAsked) {
  for (const char* name : {"nqkv-nf4", "nf3", "lm3", "lm2"}) {
    EXPECT_EQ(FindCodec(name)->window, (WindowSpec{0, 0})) << name;
  }
  const Codec codec = FindCodec("lm3:sinks=4,recent=64,raw=bf16").value();
  EXPECT_EQ(codec.window, (WindowSpec{4, 64}));
  EXPECT_EQ(codec.name, "lm3:sinks=4,recent=64,raw=bf16");
  EXPECT_EQ(codec.ForLayer(3, 128)->table, LutTable::kLm3);
  EXPECT_NE(FindCodec("lm3")->Hash(), FindCodec("nf3")->Hash());
}

TEST(CodecTest, ShiftedKeysHaveTheWindowOfTheBaselines) {
  const Codec codec = FindCodec("anf4").value();
  EXPECT_EQ(codec.window, FindCodec("int8")->window);
  EXPECT_EQ(codec.ForLayer(0, 64)->table, LutTable::kAnf4);
  EXPECT_NE(codec.Hash(), FindCodec("nqkv-nf4:sinks=4,recent=64")->Hash());
}

TEST(CodecTest, ParametersThatSayNothingNewLeaveNoTrace) {
  const Codec codec = FindCodec("kivi-4-g64:k_bits=4,recent=64,layer.3=4/4,").value();
  EXPECT_EQ(codec.name, "kivi-4-g64");
  EXPECT_EQ(codec.Hash(), FindCodec("kivi-4-g64")->Hash());
}

TEST(CodecTest, WrongNamesAndParametersAreRefusedByName) {
  using enum absl::StatusCode;
  ExpectRefused("kivi-5", kNotFound, "kivi-4-g64");
  ExpectRefused("", kNotFound, "fp16");
  ExpectRefused("kivi-2:depth=3", kInvalidArgument, "unknown parameter 'depth'");
  ExpectRefused("kivi-2:k_bits=5", kInvalidArgument, "k_bits=5");
  ExpectRefused("kivi-2:k_bits", kInvalidArgument, "1, 2, 3, 4, 8");
  ExpectRefused("kivi-2:k_group=16", kInvalidArgument, "32, 64");
  ExpectRefused("kivi-2:v_group=96", kInvalidArgument, "32, 64, 128");
  ExpectRefused("kivi-2:sinks=-1", kInvalidArgument, "sinks=-1");
  ExpectRefused("kivi-2:recent=9999999", kInvalidArgument, "recent=9999999");
  ExpectRefused("kivi-2:recent=12x", kInvalidArgument, "recent=12x");
  ExpectRefused("kivi-2:raw=fp8", kInvalidArgument, "fp16, bf16");
  ExpectRefused("kivi-2:layer.x=4/4", kInvalidArgument, "layer.x");
  ExpectRefused("kivi-2:layer.1=4", kInvalidArgument, "layer.1=4");
  ExpectRefused("kivi-2:layer.1=4/7", kInvalidArgument, "layer.1=4/7");
  ExpectRefused("fp16:k_bits=4", kInvalidArgument, "kivi-*");
  ExpectRefused("int8:layer.0=4/4", kInvalidArgument, "kivi-*");
  ExpectRefused("lm3:k_bits=4", kInvalidArgument, "kivi-*");
  ExpectRefused("fp16:raw=bf16", kInvalidArgument, "raw=bf16");
}

TEST(BlockSpecTest, ValidateNamesTheField) {
  BlockSpec spec = FindCodec("kivi-2")->ForLayer(0, 128).value();
  EXPECT_TRUE(spec.Validate().ok());
  const auto expect_bad = [](BlockSpec bad, const char* field) {
    EXPECT_THAT(std::string(bad.Validate().message()), HasSubstr(field));
  };
  BlockSpec bad = spec;
  bad.head_dim = 80;
  expect_bad(bad, "head_dim is 80");
  bad = spec;
  bad.k_bits = 5;
  expect_bad(bad, "k_bits is 5");
  bad = spec;
  bad.v_bits = 0;
  expect_bad(bad, "v_bits is 0");
  bad = spec;
  bad.k_group_tokens = 128;
  expect_bad(bad, "k_group_tokens is 128");
  bad = spec;
  bad.head_dim = 96;
  bad.v_group_channels = 64;
  expect_bad(bad, "v_group_channels is 64");
  bad = spec;
  bad.kind = static_cast<BlockKind>(9);
  expect_bad(bad, "kind is 9");
  bad.kind = BlockKind::kLut;
  expect_bad(bad, "table is 0");
}

}  // namespace
}  // namespace kvferry::codec
