#include "tests/integration/served_model.h"

#include <filesystem>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/tokenizer.h"
#include "tests/integration/cluster.h"

namespace kvferry::testing {
namespace {

constexpr int kRandomPromptTokens = 600;
constexpr char kSmallShape[] = "bench/shapes/small.json";

std::string DiaryText(int number) {
  constexpr const char* kLines[] = {
      "The ferry leaves the harbour in the early morning, when the fog still lies on the water.",
      "A bell rings twice, the ropes are taken in, and the gulls follow the ship for a while.",
      "On the far shore the baker opens his door and looks out for the first passengers.",
      "They bring newspapers and letters, and in summer a few children with nets and buckets.",
      "In the evening the last boat returns with its lamps lit, and the harbour falls silent."};
  std::string text = absl::StrCat("Diary ", number, ".\n");
  for (int round = 0; round < 5; ++round) {
    for (int line = 0; line < 5; ++line) absl::StrAppend(&text, kLines[(line + number) % 5], "\n");
  }
  return text;
}

}  // namespace

ServedModel SmallRandomModel() { return {.path = kSmallShape, .random_weights = true}; }

ServedModel ChooseServedModel() {
  if (std::filesystem::exists(DemoModelPath())) return {.path = DemoModelPath()};
  return SmallRandomModel();
}

absl::StatusOr<std::vector<std::vector<std::int32_t>>> LongPrompts(const ServedModel& model,
                                                                   int vocabulary, int count) {
  std::vector<std::vector<std::int32_t>> prompts(count);
  if (model.random_weights) {
    std::mt19937 random(5);
    std::uniform_int_distribution<std::int32_t> id(0, vocabulary - 1);
    for (std::vector<std::int32_t>& prompt : prompts) {
      prompt.resize(kRandomPromptTokens);
      for (std::int32_t& token : prompt) token = id(random);
    }
    return prompts;
  }
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::Tokenizer> tokenizer,
                       model::Tokenizer::Load(model.path));
  for (int number = 0; number < count; ++number) {
    KVF_ASSIGN_OR_RETURN(prompts[number], tokenizer->Encode(DiaryText(number), true));
  }
  return prompts;
}

}  // namespace kvferry::testing
