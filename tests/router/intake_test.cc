#include "router/intake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"

namespace kvferry::router {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class IntakeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto model = ServedModel::Load(KVFERRY_DEMO_MODEL, "demo");
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = new ServedModel(*std::move(model));
  }
  static void TearDownTestSuite() { delete model_; }

  static v1::GenerateRequest Request() {
    v1::GenerateRequest request;
    request.set_prompt("The capital of France is");
    request.set_max_tokens(10);
    return request;
  }
  GenerateSpec Take(const v1::GenerateRequest& request) {
    auto spec = intake_.Generate(request);
    EXPECT_TRUE(spec.ok()) << spec.status();
    return spec.ok() ? *spec : GenerateSpec{};
  }

  static ServedModel* model_;
  Offer offer_;
  Intake intake_{*model_, offer_};
};

ServedModel* IntakeTest::model_ = nullptr;

TEST_F(IntakeTest, TakesATextWithDefaults) {
  v1::GenerateRequest request = Request();
  request.clear_max_tokens();
  const GenerateSpec spec = Take(request);
  EXPECT_EQ(spec.prompt, *model_->tokenizer->Encode("The capital of France is", true));
  EXPECT_EQ(spec.max_new_tokens, 512u);
  EXPECT_EQ(spec.request_id.size(), 32u);
  EXPECT_EQ(spec.codec, "");
  EXPECT_EQ(spec.sampling.temperature, 0);
  EXPECT_THAT(spec.stop_tokens, Contains(model_->end_tokens.front()));
  EXPECT_NE(spec.sampling.seed, Take(request).sampling.seed);
  request.set_ignore_eos(true);
  EXPECT_THAT(Take(request).stop_tokens, IsEmpty());
}

TEST_F(IntakeTest, TakesWhatIsSaid) {
  v1::GenerateRequest request = Request();
  request.set_request_id("mine");
  request.set_model("demo");
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_sampling()->set_top_k(3);
  request.mutable_sampling()->set_top_p(0.25f);
  request.mutable_sampling()->set_min_p(0.125f);
  request.mutable_sampling()->set_repetition_penalty(1.5f);
  request.mutable_sampling()->set_seed(0);
  request.add_stop("\n\n");
  request.add_stop_tokens(17);
  const GenerateSpec spec = Take(request);
  EXPECT_EQ(spec.request_id, "mine");
  EXPECT_EQ(spec.sampling.temperature, 0.5f);
  EXPECT_EQ(spec.sampling.top_k, 3);
  EXPECT_EQ(spec.sampling.top_p, 0.25f);
  EXPECT_EQ(spec.sampling.min_p, 0.125f);
  EXPECT_EQ(spec.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(spec.sampling.seed, 0u);
  EXPECT_THAT(spec.stop, testing::ElementsAre("\n\n"));
  EXPECT_THAT(spec.stop_tokens, Contains(17));
}

TEST_F(IntakeTest, ChatIsRenderedWithTheModelsTemplate) {
  v1::GenerateRequest request = Request();
  v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("Hello");
  const GenerateSpec spec = Take(request);
  const std::int32_t start = model_->tokenizer->Encode("<|im_start|>", true)->front();
  EXPECT_EQ(std::count(spec.prompt.begin(), spec.prompt.end(), start), 3)
      << "default system, user, assistant";
}

TEST_F(IntakeTest, CodecsAreFoundByWhatTheyAre) {
  offer_.Set({.codecs = {"kivi-4-g64", "fp16"}});
  v1::GenerateRequest request = Request();
  request.set_codec("kivi-4-g64");
  EXPECT_EQ(Take(request).codec, "kivi-4-g64");
  request.set_codec("int8");
  const absl::Status status = intake_.Generate(request).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("fp16, kivi-4-g64"));
  offer_.Set({});
  EXPECT_EQ(Take(request).codec, "int8") << "a worker may yet come";
}

TEST_F(IntakeTest, TheContextIsTheSmallerOne) {
  EXPECT_EQ(intake_.ContextTokens(), 8192u);
  offer_.Set({.max_context_tokens = 100});
  EXPECT_EQ(intake_.ContextTokens(), 100u);
  v1::GenerateRequest request = Request();
  const std::size_t prompt = Take(request).prompt.size();
  request.set_max_tokens(static_cast<int>(100 - prompt));
  EXPECT_EQ(Take(request).max_new_tokens, 100 - prompt);
  request.set_max_tokens(static_cast<int>(101 - prompt));
  EXPECT_THAT(std::string(intake_.Generate(request).status().message()),
              HasSubstr(absl::StrCat("room for ", 100 - prompt)));
  request.clear_max_tokens();
  EXPECT_EQ(Take(request).max_new_tokens, 100 - prompt);
}

TEST_F(IntakeTest, BadInputNamesFieldAndLimit) {
  struct Case {
    const char* name;
    std::function<void(v1::GenerateRequest&)> spoil;
    absl::StatusCode code;
    std::vector<std::string> words;
  };
  const absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  const Case cases[] = {
      {"empty prompt", [](auto& r) { r.set_prompt(""); }, kInvalid, {"prompt", "empty"}},
      {"no input", [](auto& r) { r.clear_input(); }, kInvalid, {"prompt", "missing"}},
      {"not UTF-8", [](auto& r) { r.set_prompt("abc\xff"); }, kInvalid, {"prompt", "3"}},
      {"chat not UTF-8",
       [](auto& r) {
         auto& message = *r.mutable_chat()->add_messages();
         message.set_role("user");
         message.set_content("a\xc3");
       },
       kInvalid,
       {"chat"}},
      {"empty chat", [](auto& r) { r.mutable_chat(); }, kInvalid, {"chat.messages"}},
      {"role",
       [](auto& r) { r.mutable_chat()->add_messages()->set_role("wizard"); },
       kInvalid,
       {"role", "wizard"}},
      {"no ids", [](auto& r) { r.mutable_tokens(); }, kInvalid, {"tokens.ids"}},
      {"id",
       [](auto& r) { r.mutable_tokens()->add_ids(49152); },
       kInvalid,
       {"tokens.ids[0]", "49152"}},
      {"negative id", [](auto& r) { r.mutable_tokens()->add_ids(-1); }, kInvalid, {"-1"}},
      {"long prompt",
       [](auto& r) {
         for (int i = 0; i < 8192; ++i) r.mutable_tokens()->add_ids(1);
       },
       kInvalid,
       {"prompt", "8192"}},
      {"zero tokens", [](auto& r) { r.set_max_tokens(0); }, kInvalid, {"max_tokens", "0"}},
      {"too many", [](auto& r) { r.set_max_tokens(1 << 30); }, kInvalid, {"max_tokens", "8192"}},
      {"model",
       [](auto& r) { r.set_model("gpt-9"); },
       absl::StatusCode::kNotFound,
       {"gpt-9", "demo"}},
      {"codec", [](auto& r) { r.set_codec("zip"); }, absl::StatusCode::kNotFound, {"codec", "zip"}},
      {"temperature",
       [](auto& r) { r.mutable_sampling()->set_temperature(std::nanf("")); },
       kInvalid,
       {"sampling.temperature"}},
      {"top_k",
       [](auto& r) { r.mutable_sampling()->set_top_k(-1); },
       kInvalid,
       {"sampling.top_k", "-1"}},
      {"top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }, kInvalid, {"top_p"}},
      {"min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1); }, kInvalid, {"min_p"}},
      {"penalty",
       [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); },
       kInvalid,
       {"repetition_penalty"}},
      {"empty stop", [](auto& r) { r.add_stop(""); }, kInvalid, {"stop[0]"}},
      {"long stop",
       [](auto& r) { r.add_stop(std::string(257, 'a')); },
       kInvalid,
       {"stop[0]", "256"}},
      {"many stops",
       [](auto& r) {
         for (int i = 0; i < 17; ++i) r.add_stop("stop");
       },
       kInvalid,
       {"stop", "16"}},
      {"stop token", [](auto& r) { r.add_stop_tokens(49152); }, kInvalid, {"stop_tokens[0]"}},
      {"many stop tokens",
       [](auto& r) {
         for (int i = 0; i < 513; ++i) r.add_stop_tokens(1);
       },
       kInvalid,
       {"stop_tokens", "512"}},
      {"long id",
       [](auto& r) { r.set_request_id(std::string(129, 'a')); },
       kInvalid,
       {"request_id", "128"}},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Request();
    c.spoil(request);
    const absl::Status status = intake_.Generate(request).status();
    EXPECT_EQ(status.code(), c.code) << c.name << ": " << status;
    for (const std::string& word : c.words)
      EXPECT_THAT(std::string(status.message()), HasSubstr(word)) << c.name;
  }
}

TEST_F(IntakeTest, ASamplingFieldIsNamedOnce) {
  v1::GenerateRequest request = Request();
  request.mutable_sampling()->set_temperature(-1);
  EXPECT_THAT(std::string(intake_.Generate(request).status().message()),
              testing::StartsWith("sampling.temperature is -1"));
}

TEST_F(IntakeTest, CountsTokens) {
  v1::CountTokensRequest request;
  EXPECT_TRUE(absl::IsInvalidArgument(intake_.Count(request).status()));
  request.set_prompt("Hello world");
  EXPECT_EQ(intake_.Count(request)->size(), 2u);
  request.set_prompt("");
  EXPECT_TRUE(intake_.Count(request)->empty());
}

}  // namespace
}  // namespace kvferry::router
