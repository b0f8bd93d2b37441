#include "worker/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rpc/fingerprint.h"
#include "tests/fakes/fake_model.h"

namespace kvferry::worker {
namespace {

TEST(MakeFingerprint, TwoWorkersOfOneModelFitTogether) {
  const fakes::FakeModel here, there;
  const v1::Fingerprint one = MakeFingerprint(here, "model"), two = MakeFingerprint(there, "model");
  EXPECT_NE(one.hash(), 0u);
  EXPECT_EQ(one.hash(), two.hash());
  EXPECT_TRUE(rpc::CompareFingerprints(one, two).ok());
}

TEST(MakeFingerprint, AnotherShapeDoesNot) {
  const fakes::FakeModel here;
  const fakes::FakeModel there({.layers = 5, .kv_heads = 2, .head_dim = 64});
  const absl::Status status =
      rpc::CompareFingerprints(MakeFingerprint(here, "model"), MakeFingerprint(there, "model"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("layers: here 4, there 5"));
}

TEST(LoadModel, AFileThatIsNotThereIsNamed) {
  v1::ModelSource source;
  source.set_path("/nowhere/model.gguf");
  source.set_device("cpu");
  const absl::Status status = LoadModel(source, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/nowhere/model.gguf"));
}

}  // namespace
}  // namespace kvferry::worker
