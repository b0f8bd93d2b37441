// Every codec through workers on GPUs, with payloads from GPU to GPU: prefill on the first one,
// decode on the last one. With one GPU both are on it.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"
#include "tests/integration/codec_handoff_suite.h"

namespace kvferry::testing {
namespace {

using ::testing::HasSubstr;

// Of the demo model: attention with 16-bit queries and outputs on a GPU against fp32 on CPUs; and
// the same where new tokens, whose K and V differ by that, get another code now and then.
constexpr float kExactError = 0.15f, kCodecError = 1.0f;
// Logits of random weights have a deviation of 1, and attention over random K and V averages errors
// out.
constexpr float kRandomExactError = 0.01f, kRandomCodecError = 0.1f;
constexpr char kTransport[] = "cuda_ipc";

// Codes of 3 bits that stand for steps have no attention on GPUs.
const std::vector<std::string> kWithoutAttention = {"kivi-2-g64:k_bits=3,v_bits=3"};

absl::StatusOr<HandoffDevices> Gpus() {
  KVF_RETURN_IF_ERROR(kernels::GetDevice(0).status());
  const ServedModel model = ChooseServedModel();
  return HandoffDevices{.prefill = "cuda:0",
                        .decode = absl::StrCat("cuda:", kernels::DeviceCount() - 1),
                        .model = model,
                        .exact_error = model.random_weights ? kRandomExactError : kExactError,
                        .codec_error = model.random_weights ? kRandomCodecError : kCodecError};
}

// The registry's, with one profile for any model in place of those of single models.
std::vector<std::string> Codecs() {
  std::vector<std::string> names = {"kvtuner"};
  for (const codec::Codec& codec : codec::RegisteredCodecs()) {
    if (!absl::StartsWith(codec.name, "kvtuner:")) names.push_back(codec.name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Gpu, CodecHandoffTest,
                         ::testing::ValuesIn(HandoffCases(Gpus, Codecs(), kTransport)),
                         HandoffCaseName);

class RefusedCodecTest : public CodecHandoffTest {};

TEST_P(RefusedCodecTest, FailsTheStartWithTheListOfThoseThatThereAre) {
  const absl::Status started = handoff_->StartDecode(GetParam().codec);
  EXPECT_EQ(started.code(), absl::StatusCode::kAborted) << started;
  const std::string log = handoff_->DecodeLog();
  EXPECT_THAT(log,
              HasSubstr(absl::StrCat("codec \"", GetParam().codec, "\", layer 0, on ",
                                     handoff_->devices().decode, ": decode_attention on a GPU: ")));
  EXPECT_THAT(log, HasSubstr("is not compiled; there are head_dim 64: 16 bit"));
}

INSTANTIATE_TEST_SUITE_P(Gpu, RefusedCodecTest,
                         ::testing::ValuesIn(HandoffCases(Gpus, kWithoutAttention, kTransport)),
                         HandoffCaseName);

}  // namespace
}  // namespace kvferry::testing
