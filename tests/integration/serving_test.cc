#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <future>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "rpc/convert.h"
#include "rpc/status.h"
#include "tests/integration/cluster.h"
#include "tests/integration/reference.h"

// The whole path with the real model: three and more processes on loopback.
namespace kvferry::testing {
namespace {

using ::testing::HasSubstr;

// Largest difference of a logit between attention over a 16-bit cache and exact attention, on these
// prompts.
constexpr float kLogitError = 0.05f;

const char* const kPrompts[] = {
    "The capital of France is",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "Once upon a time, in a small village by the sea, there lived a fisherman who",
    "Water boils at one hundred degrees because",
};

std::string LongPrompt(int lines) {
  std::string text = "Log of the harbour.\n";
  for (int line = 0; line < lines; ++line)
    absl::StrAppend(&text, "Ship ", line * 17 % 101, " came in with the tide at hour ", line % 24,
                    ".\n");
  return text;
}

class ServingTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ClusterOptions options;
    options.prefill_workers = 2;
    options.decode_workers = 2;
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = cluster->release();
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override { ASSERT_NE(cluster_, nullptr); }

  void ExpectAllFree() {
    const absl::Status free = cluster_->AwaitAllFree(absl::Seconds(5));
    EXPECT_TRUE(free.ok()) << free;
  }
  static Cluster* cluster_;
};

Cluster* ServingTest::cluster_ = nullptr;

TEST_F(ServingTest, SixtyFourStreamsEqualTheirRequestAloneInOneProcess) {
  constexpr int kStreams = 64;
  constexpr int kTokens = 12;
  auto tokenizer = model::Tokenizer::Load(DemoModelPath());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto model = model::Model::Load({.path = DemoModelPath()});
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<Reference> references;
  for (const char* prompt : kPrompts) {
    auto reference = GreedyReference(**model, *(*tokenizer)->Encode(prompt, true), kTokens);
    ASSERT_TRUE(reference.ok()) << reference.status();
    references.push_back(*std::move(reference));
  }
  std::vector<std::future<Answer>> answers;
  for (int stream = 0; stream < kStreams; ++stream) {
    answers.push_back(std::async(std::launch::async, [stream] {
      return cluster_->Generate(GreedyRequest(kPrompts[stream % std::size(kPrompts)], kTokens));
    }));
  }
  std::size_t compared = 0;
  for (int stream = 0; stream < kStreams; ++stream) {
    const Answer answer = answers[stream].get();
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(answer.contiguous);
    ASSERT_EQ(answer.ids.size(), static_cast<std::size_t>(kTokens));
    const Reference& reference = references[stream % references.size()];
    const std::size_t comparable = ComparableTokens(reference, kLogitError);
    for (std::size_t i = 0; i < comparable; ++i)
      EXPECT_EQ(answer.ids[i], reference.ids[i]) << "stream " << stream << " token " << i;
    compared += comparable;
  }
  EXPECT_GT(compared, std::size_t{kStreams} * 4) << "the margins leave too little to compare";
  ExpectAllFree();
}

TEST_F(ServingTest, HandoffMovesWhatTheFormulaSays) {
  const Answer answer = cluster_->Generate(GreedyRequest(LongPrompt(60), 4));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  const v1::HandoffStats& handoff = answer.finished.handoff();
  EXPECT_TRUE(handoff.adopted());
  EXPECT_EQ(handoff.prompt_tokens(), answer.finished.prompt_tokens());
  EXPECT_EQ(handoff.payload_bytes(), handoff.raw16_bytes())
      << "the fp16 codec ships exactly the 16-bit cache";
  EXPECT_LE(handoff.header_bytes() * 100, handoff.payload_bytes());
  EXPECT_EQ(handoff.resent_chunks(), 0u);
}

// Nobody needs the cache of an answer that ends with the token that prefill samples. Decode may
// have adopted it all the same before the router heard of the token.
TEST_F(ServingTest, OneTokenSaysWhatItsHandOffMoved) {
  const Answer answer = cluster_->Generate(GreedyRequest(LongPrompt(20), 1));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.ids.size(), 1u);
  const v1::HandoffStats& handoff = answer.finished.handoff();
  EXPECT_EQ(handoff.prompt_tokens(), answer.finished.prompt_tokens());
  EXPECT_GT(handoff.raw16_bytes(), 0u);
  EXPECT_GT(rpc::ToSeconds(handoff.prefill_time()), 0);
  EXPECT_FALSE(handoff.transport().empty());
  EXPECT_EQ(handoff.has_exposed_time(), handoff.adopted());
  EXPECT_LE(handoff.payload_bytes(), handoff.raw16_bytes());
  if (handoff.adopted()) {
    EXPECT_EQ(handoff.payload_bytes(), handoff.raw16_bytes());
  }
  ExpectAllFree();
}

// Kinds of block beside KVB on the same path, past a flush of the window. The nqkv rule keeps no
// window: a hand-off may have none, and the decode worker begins one.
TEST(ServingCodecTest, EveryKindOfBlockServes) {
  for (const char* name : {"fp8", "nqkv-nf4", "lm3"}) {
    SCOPED_TRACE(name);
    auto cluster = Cluster::Start({.codec = name});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    const Answer answer = (*cluster)->Generate(GreedyRequest(LongPrompt(30), 70));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(answer.contiguous);
    EXPECT_EQ(answer.ids.size(), 70u);
    const v1::HandoffStats& handoff = answer.finished.handoff();
    EXPECT_GT(handoff.prompt_tokens(), 256u);
    EXPECT_LT(handoff.payload_bytes() * 4, handoff.raw16_bytes() * 3);
    const absl::Status free = (*cluster)->AwaitAllFree(absl::Seconds(5));
    EXPECT_TRUE(free.ok()) << free;
  }
}

// Layers of different bits: pages of a row differ in size. Only the decode worker knows the file.
TEST(ServingCodecTest, AProfileServesFromItsFile) {
  const std::string path = ::testing::TempDir() + "/kvferry_serving_profile.json";
  {
    std::ofstream file(path);
    file
        << R"({"format": "kvferry-profile", "version": 1, "name": "mixed", "codec": "kivi-4-g64", "layers": [)";
    for (int layer = 0; layer < 30; ++layer) {
      constexpr std::array kPairs = {"[8, 4]", "[4, 4]", "[4, 2]", "[2, 2]"};
      file << (layer == 0 ? "" : ", ") << kPairs[layer % kPairs.size()];
    }
    file << "]}";
  }
  auto cluster = Cluster::Start({.codec = "kvtuner:" + path});
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  std::remove(path.c_str());
  const Answer answer = (*cluster)->Generate(GreedyRequest(LongPrompt(30), 70));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.ids.size(), 70u);
  const v1::HandoffStats& handoff = answer.finished.handoff();
  EXPECT_LT(handoff.payload_bytes() * 2, handoff.raw16_bytes());
  const absl::Status free = (*cluster)->AwaitAllFree(absl::Seconds(5));
  EXPECT_TRUE(free.ok()) << free;
  // Of another model's shape: the decode worker says so and does not start.
  std::ofstream(path) << R"({"format": "kvferry-profile", "version": 1, "name": "two",
                             "codec": "kivi-4-g64", "layers": [[4, 4], [4, 4]]})";
  EXPECT_FALSE(Cluster::Start({.codec = "kvtuner:" + path}).ok());
  std::remove(path.c_str());
}

TEST_F(ServingTest, SampledTokensDependOnSeedOnly) {
  v1::GenerateRequest request = GreedyRequest(kPrompts[2], 16);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_top_p(0.95f);
  request.mutable_sampling()->set_seed(1234);
  const Answer first = cluster_->Generate(request);
  const Answer again = cluster_->Generate(request);
  request.mutable_sampling()->set_seed(99);
  const Answer other = cluster_->Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(first.ids, again.ids);
  EXPECT_NE(first.ids, other.ids);
}

TEST_F(ServingTest, StopStringEndsTheAnswerBeforeIt) {
  v1::GenerateRequest request = GreedyRequest("Count: one, two, three, four, five,", 32);
  const Answer whole = cluster_->Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  ASSERT_GT(whole.text.size(), 12u);
  const std::string stop = whole.text.substr(8, 4);
  request.add_stop(stop);
  const Answer cut = cluster_->Generate(request);
  ASSERT_TRUE(cut.status.ok()) << cut.status;
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(cut.finished.reason(), v1::FINISH_REASON_STOP);
  ExpectAllFree();
}

TEST_F(ServingTest, CancelFreesEverythingAtAnyState) {
  for (const int after_tokens : {0, 1, 8}) {
    v1::GenerateRequest request = GreedyRequest(LongPrompt(80), 200);
    int seen = 0;
    const Answer answer = cluster_->Generate(request, [&](const v1::GenerateEvent& event) {
      if (event.has_tokens()) seen += event.tokens().ids_size();
      return seen < after_tokens || (after_tokens == 0 && !event.has_started());
    });
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
    ExpectAllFree();
  }
}

TEST_F(ServingTest, OneTokenAndPromptsAroundTheBlockBorders) {
  for (const int lines : {1, 3, 5, 9}) {
    const Answer answer = cluster_->Generate(GreedyRequest(LongPrompt(lines), 1));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.ids.size(), 1u);
  }
  ExpectAllFree();
}

struct BadRequest {
  const char* name;
  std::function<void(v1::GenerateRequest&)> spoil;
  absl::StatusCode code;
  const char* message;
};

TEST_F(ServingTest, BadInputNamesFieldAndLimitAndHarmsNobody) {
  const BadRequest kBad[] = {
      {"empty prompt", [](auto& r) { r.set_prompt(""); }, absl::StatusCode::kInvalidArgument,
       "prompt"},
      {"no input", [](auto& r) { r.clear_input(); }, absl::StatusCode::kInvalidArgument, "prompt"},
      {"long prompt", [](auto& r) { r.set_prompt(LongPrompt(900)); },
       absl::StatusCode::kInvalidArgument, "8192"},
      {"max_tokens", [](auto& r) { r.set_max_tokens(100000); }, absl::StatusCode::kInvalidArgument,
       "max_tokens"},
      {"zero tokens", [](auto& r) { r.set_max_tokens(0); }, absl::StatusCode::kInvalidArgument,
       "max_tokens"},
      {"model", [](auto& r) { r.set_model("gpt-9"); }, absl::StatusCode::kNotFound, "gpt-9"},
      {"codec", [](auto& r) { r.set_codec("zip"); }, absl::StatusCode::kNotFound, "zip"},
      {"temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-1); },
       absl::StatusCode::kInvalidArgument, "temperature"},
      {"nan", [](auto& r) { r.mutable_sampling()->set_temperature(std::nanf("")); },
       absl::StatusCode::kInvalidArgument, "temperature"},
      {"top_p", [](auto& r) { r.mutable_sampling()->set_top_p(1.5f); },
       absl::StatusCode::kInvalidArgument, "top_p"},
      {"min_p", [](auto& r) { r.mutable_sampling()->set_min_p(-0.1f); },
       absl::StatusCode::kInvalidArgument, "min_p"},
      {"token id", [](auto& r) { r.mutable_tokens()->add_ids(49152); },
       absl::StatusCode::kInvalidArgument, "49152"},
      {"stop", [](auto& r) { r.add_stop(""); }, absl::StatusCode::kInvalidArgument, "stop"},
      {"chat role", [](auto& r) { r.mutable_chat()->add_messages()->set_role("wizard"); },
       absl::StatusCode::kInvalidArgument, "role"},
      {"large message", [](auto& r) { r.set_prompt(std::string(5 << 20, 'a')); },
       absl::StatusCode::kResourceExhausted, "message"},
  };
  for (const BadRequest& bad : kBad) {
    v1::GenerateRequest request = GreedyRequest(kPrompts[0], 4);
    bad.spoil(request);
    const Answer answer = cluster_->Generate(request);
    EXPECT_EQ(answer.status.code(), bad.code) << bad.name << ": " << answer.status;
    EXPECT_THAT(std::string(answer.status.message()), HasSubstr(bad.message)) << bad.name;
  }
  const Answer fine = cluster_->Generate(GreedyRequest(kPrompts[0], 4));
  EXPECT_TRUE(fine.status.ok()) << fine.status;
  ExpectAllFree();
}

}  // namespace
}  // namespace kvferry::testing
