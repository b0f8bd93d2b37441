#include "kvcodec/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_replace.h"
#include "kvcodec/open_codec.h"
#include "kvcodec/plan.h"
#include "tests/model/temp_folder.h"

namespace kvferry::codec {
namespace {

using ::testing::HasSubstr;

constexpr char kThreeLayers[] = R"({"format": "kvferry-profile", "version": 1, "name": "three",
  "codec": "kivi-4-g64", "layers": [[8, 4], [4, 4], [2, 2]], "search": {"anything": 1}})";

std::string With(const std::string& what, const std::string& instead) {
  return absl::StrReplaceAll(kThreeLayers, {{what, instead}});
}

void ExpectRefused(const std::string& json, const char* part) {
  const absl::StatusOr<Profile> profile = ParseProfile(json, "a.json");
  ASSERT_FALSE(profile.ok()) << json;
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(profile.status().message()), HasSubstr("profile 'a.json'"));
  EXPECT_THAT(std::string(profile.status().message()), HasSubstr(part));
}

TEST(ProfileTest, IsANameForLayerOverrides) {
  const absl::StatusOr<Profile> profile = ParseProfile(kThreeLayers, "a.json");
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->name, "three");
  const absl::StatusOr<Codec> codec = ProfileCodec(*profile);
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ(codec->name, "kivi-4-g64:layer.0=8/4,layer.2=2/2");
  EXPECT_EQ(codec->Hash(), FindCodec(codec->name)->Hash());
  EXPECT_EQ(codec->ForLayer(0, 64)->k_bits, 8);
  EXPECT_EQ(codec->ForLayer(1, 64)->v_bits, 4);
  EXPECT_EQ(codec->ForLayer(2, 64)->k_bits, 2);
  // (6 + 4 + 2) / 3 bits of codes, and 32 for each group of 64.
  EXPECT_DOUBLE_EQ(codec->BitsPerValue(64), 4.5);
}

TEST(ProfileTest, AModelOfAnotherShapeIsRefusedByName) {
  const Codec codec = ProfileCodec(ParseProfile(kThreeLayers, "a.json").value()).value();
  EXPECT_TRUE(codec.FitsModel({.layers = 3}).ok());
  const absl::Status other = codec.FitsModel({.layers = 30});
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other.message()), HasSubstr("layer.0=8/4"));
  EXPECT_THAT(std::string(other.message()), HasSubstr("of 3 layers, this one has 30"));
  EXPECT_TRUE(HandoffBytes(500, codec, {3, 2, 64}).ok());
  EXPECT_EQ(HandoffBytes(500, codec, {4, 2, 64}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(FindCodec("kivi-4-g64")->FitsModel({.layers = 7}).ok());
}

TEST(ProfileTest, WrongFilesAreRefusedByField) {
  ExpectRefused("", "no JSON object");
  ExpectRefused("[1]", "no JSON object");
  ExpectRefused("{\"format\": ", "no JSON object");
  ExpectRefused("{}", "format");
  ExpectRefused(With("kvferry-profile", "yaml"), "format");
  ExpectRefused(With("\"version\": 1", "\"version\": 2"), "version is 2, this program reads 1");
  ExpectRefused(With("\"version\": 1,", ""), "version is missing");
  ExpectRefused(With("\"three\"", "3"), "has no name");
  ExpectRefused(With("\"kivi-4-g64\"", "\"\""), "has no codec");
  ExpectRefused(With("[[8, 4], [4, 4], [2, 2]]", "[]"), "layers");
  ExpectRefused(With("[[8, 4], [4, 4], [2, 2]]", "{}"), "layers");
  ExpectRefused(With("[4, 4]", "[4, 5]"), "layers[1] is [4,5]");
  ExpectRefused(With("[4, 4]", "[4]"), "layers[1] is [4]");
  ExpectRefused(With("[4, 4]", "[4, 16]"), "layers[1]");
  ExpectRefused(With("[4, 4]", "[4, 4294967300]"), "layers[1]");
  ExpectRefused(With("[2, 2]", "\"2/2\""), "layers[2]");
  ExpectRefused(With("[2, 2]", "[2.0, 2]"), "layers[2]");
}

TEST(ProfileTest, ItsCodecMustHaveGroups) {
  for (const char* name : {"zip", "fp16", "lm3"}) {
    const absl::StatusOr<Codec> codec =
        ProfileCodec(ParseProfile(With("kivi-4-g64", name), "a.json").value());
    EXPECT_FALSE(codec.ok()) << name;
    EXPECT_THAT(std::string(codec.status().message()), HasSubstr("profile 'three'"));
  }
}

TEST(ProfileTest, OnlyAnOperatorMayNameAFile) {
  const model::TempFolder folder;
  const std::string id = "kvtuner:" + (folder / "mine.json").string();
  EXPECT_EQ(OpenCodec(id).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder / "mine.json") << kThreeLayers;
  const absl::StatusOr<Codec> codec = OpenCodec(id);
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ(codec->model_layers, 3);
  // Its name says all of it: a peer needs no file.
  EXPECT_EQ(FindCodec(codec->name)->Hash(), codec->Hash());
  EXPECT_EQ(FindCodec(id).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder / "mine.json") << "no profile";
  EXPECT_EQ(OpenCodec(id).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenCodec("kivi-4-g64")->name, "kivi-4-g64");
  EXPECT_EQ(OpenCodec("kvtuner:no-such").status().code(), absl::StatusCode::kNotFound);
}

TEST(LayerOverrideTest, ALayerCanStayIn16Bits) {
  const Codec codec = FindCodec("kivi-2-g64:layer.1=16/16").value();
  EXPECT_EQ(codec.name, "kivi-2-g64:layer.1=16/16");
  EXPECT_EQ(codec.ForLayer(0, 64)->kind, BlockKind::kScalar);
  EXPECT_EQ(codec.ForLayer(1, 64).value(), FindCodec("fp16")->ForLayer(1, 64).value());
  EXPECT_NE(codec.Hash(), FindCodec("kivi-2-g64")->Hash());
  EXPECT_FALSE(FindCodec("kivi-2-g64:layer.1=16/8").ok());
  EXPECT_FALSE(FindCodec("kivi-2-g64:layer.1=8/16").ok());
  EXPECT_FALSE(FindCodec("kivi-2-g64:k_bits=16").ok());
}

}  // namespace
}  // namespace kvferry::codec
