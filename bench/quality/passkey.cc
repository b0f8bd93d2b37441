#include "bench/quality/passkey.h"

#include <algorithm>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/compare.h"
#include "bench/quality/passages.h"
#include "bench/quality/prompt.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::bench {
namespace {

// Room for the digits one by one and a word before them.
constexpr int kAnswerTokens = 12;

// A prompt whose key the exact model finds.
struct Question {
  const Passkey* passkey = nullptr;
  PrefilledPrompt prompt;  // fp16
  std::int32_t first_token = 0;
};

absl::StatusOr<std::vector<Question>> AskExact(const PasskeyInput& input,
                                               std::span<const Passkey> passkeys,
                                               PasskeyCounts& counts) {
  std::vector<Question> questions;
  for (const Passkey& passkey : passkeys) {
    Question question{.passkey = &passkey};
    KVF_ASSIGN_OR_RETURN(question.prompt,
                         PrefillPrompt(input.device.model(), passkey.prompt, codec::Raw16::kFp16,
                                       static_cast<int>(passkey.prompt.size()) + kAnswerTokens));
    KVF_ASSIGN_OR_RETURN(const std::vector<std::int32_t> answer,
                         ContinueGreedily(*question.prompt.session, passkey.prompt, kAnswerTokens));
    question.first_token = answer.front();
    KVF_ASSIGN_OR_RETURN(const bool found, NamesKey(input.tokenizer, answer, passkey.key));
    if (!found) continue;
    ++counts.found[passkey.depth];
    questions.push_back(std::move(question));
  }
  return questions;
}

absl::Status ShipQuestion(const PasskeyInput& input, const Question& question, DeviceStore& store,
                          CacheBatch& batch) {
  const codec::Raw16 type = store.cache().codec().raw_type;
  PrefilledPrompt other;  // of a codec that wants another 16-bit type
  const std::vector<codec::KvView>* layers = &question.prompt.layers;
  if (layers->front().type != type) {
    KVF_ASSIGN_OR_RETURN(other, PrefillPrompt(input.device.model(), question.passkey->prompt, type,
                                              static_cast<int>(question.passkey->prompt.size())));
    layers = &other.layers;
  }
  const Recipient to = {batch, kAnswerTokens};
  return ShipPrompt(*layers, std::span(&to, 1)).status();
}

absl::Status AskCodec(const PasskeyInput& input, const codec::Codec& codec,
                      std::span<const Question> questions, PasskeyCounts& counts) {
  const int prompt_tokens = static_cast<int>(questions.front().passkey->prompt.size());
  KVF_ASSIGN_OR_RETURN(
      const std::unique_ptr<DeviceStore> store,
      DeviceStore::Create(
          codec, questions.size() * cache::RowsNeeded(prompt_tokens, kAnswerTokens, codec.window),
          static_cast<int>(questions.size()), input.device));
  CacheBatch batch(*store);
  std::vector<std::int32_t> tokens;
  std::vector<std::vector<std::int32_t>> answers;
  for (const Question& question : questions) {
    KVF_RETURN_IF_ERROR(ShipQuestion(input, question, *store, batch));
    tokens.push_back(question.first_token);
    answers.push_back({question.first_token});
  }
  const std::size_t vocabulary = input.device.vocabulary();
  for (int step = 1; step < kAnswerTokens; ++step) {
    KVF_ASSIGN_OR_RETURN(const std::span<const float> logits, batch.Step(tokens));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = LikeliestToken(logits.subspan(i * vocabulary, vocabulary));
      answers[i].push_back(tokens[i]);
    }
  }
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Passkey& passkey = *questions[i].passkey;
    KVF_ASSIGN_OR_RETURN(const bool found, NamesKey(input.tokenizer, answers[i], passkey.key));
    counts.found[passkey.depth] += found;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Passkey>> MakePasskeys(const model::Tokenizer& tokenizer,
                                                  std::span<const std::int32_t> text,
                                                  int prompt_tokens, int per_depth,
                                                  std::uint64_t seed) {
  KVF_ASSIGN_OR_RETURN(const std::vector<std::int32_t> question,
                       tokenizer.Encode("\n\nWhat is the pass key? The pass key is", false));
  const int count = per_depth * static_cast<int>(kPasskeyDepths.size());
  KVF_ASSIGN_OR_RETURN(const std::vector<Passage> fillers,
                       SpreadPassages(text, prompt_tokens, count));
  std::mt19937_64 random(seed);
  std::vector<Passkey> passkeys;
  for (int i = 0; i < count; ++i) {
    Passkey& passkey = passkeys.emplace_back();
    passkey.depth = static_cast<std::size_t>(i) % kPasskeyDepths.size();
    passkey.key = absl::StrCat(10000 + (random() >> 32) * 90000 / (std::uint64_t{1} << 32));
    KVF_ASSIGN_OR_RETURN(
        const std::vector<std::int32_t> fact,
        tokenizer.Encode(absl::StrCat("\n\nThe pass key is ", passkey.key, ". Remember it. ",
                                      passkey.key, " is the pass key.\n\n"),
                         false));
    const std::size_t added = fact.size() + question.size();
    if (added >= static_cast<std::size_t>(prompt_tokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt_tokens is ", prompt_tokens, ": key and question take ", added));
    }
    const std::span<const std::int32_t> filler =
        fillers[i].tokens.first(static_cast<std::size_t>(prompt_tokens) - added);
    const std::size_t before = filler.size() * kPasskeyDepths[passkey.depth] / 100;
    passkey.prompt.assign(filler.begin(), filler.begin() + static_cast<std::ptrdiff_t>(before));
    passkey.prompt.insert(passkey.prompt.end(), fact.begin(), fact.end());
    const auto after = filler.subspan(before);
    passkey.prompt.insert(passkey.prompt.end(), after.begin(), after.end());
    passkey.prompt.insert(passkey.prompt.end(), question.begin(), question.end());
  }
  return passkeys;
}

absl::StatusOr<bool> NamesKey(const model::Tokenizer& tokenizer,
                              std::span<const std::int32_t> answer, std::string_view key) {
  std::string text;
  for (const std::int32_t token : answer) {
    KVF_ASSIGN_OR_RETURN(const std::string bytes, tokenizer.TokenBytes(token));
    text += bytes;
  }
  return absl::StrContains(text, ToAbsl(key));
}

absl::StatusOr<PasskeyResult> RunPasskeys(const PasskeyInput& input,
                                          const Measure::Progress& progress) {
  PasskeyResult result{.per_depth = static_cast<int>(input.passkeys.size() / kPasskeyDepths.size()),
                       .exact = {.codec = kExactModel}};
  for (const codec::Codec& codec : input.codecs) result.codecs.push_back({.codec = codec.name});
  for (std::size_t at = 0; at < input.passkeys.size(); at += input.batch) {
    progress("passkeys", static_cast<int>(at), static_cast<int>(input.passkeys.size()));
    const auto group =
        input.passkeys.subspan(at, std::min<std::size_t>(input.batch, input.passkeys.size() - at));
    KVF_ASSIGN_OR_RETURN(const std::vector<Question> questions,
                         AskExact(input, group, result.exact));
    if (questions.empty()) continue;
    for (std::size_t i = 0; i < input.codecs.size(); ++i) {
      KVF_RETURN_IF_ERROR(AskCodec(input, input.codecs[i], questions, result.codecs[i]));
    }
  }
  return result;
}

}  // namespace kvferry::bench
