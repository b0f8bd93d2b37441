#include "router/intake.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "model/config_reader.h"
#include "model/stop_matcher.h"

namespace kvferry::router {
namespace {

constexpr std::size_t kMaxRequestIdBytes = 128;
constexpr std::uint32_t kDefaultMaxTokens = 512;
constexpr int kMaxStopTokens = 512;  // workers take 1024, end tokens included

absl::Status Invalid(const absl::AlphaNum& field, const absl::AlphaNum& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status Named(const absl::AlphaNum& field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, status.message()));
}

absl::StatusOr<model::SamplingParams> ToSampling(const v1::SamplingParams& message) {
  model::SamplingParams params;
  if (message.has_temperature()) params.temperature = message.temperature();
  if (message.has_top_k()) params.top_k = message.top_k();
  if (message.has_top_p()) params.top_p = message.top_p();
  if (message.has_min_p()) params.min_p = message.min_p();
  if (message.has_repetition_penalty()) params.repetition_penalty = message.repetition_penalty();
  params.seed = message.has_seed() ? message.seed() : RandomId64();
  KVF_RETURN_IF_ERROR(params.Validate());
  return params;
}

}  // namespace

absl::StatusOr<ServedModel> ServedModel::Load(const std::string& path, const std::string& name) {
  ServedModel served;
  served.name = name;
  KVF_ASSIGN_OR_RETURN(served.config, model::ReadModelConfig(path));
  KVF_ASSIGN_OR_RETURN(served.tokenizer, model::Tokenizer::Load(path));
  const std::string& chat = served.tokenizer->chat_template();
  if (const auto format = model::DetectChatFormat(chat); format.ok()) {
    served.chat_format = *format;
    served.default_system = model::DefaultSystemPrompt(chat);
  } else {
    Log(LogLevel::kWarning, "chat_off", {{"why", format.status()}});
  }
  std::set<std::int32_t> ends(served.tokenizer->end_tokens().begin(),
                              served.tokenizer->end_tokens().end());
  ends.insert(served.config.end_tokens.begin(), served.config.end_tokens.end());
  served.end_tokens.assign(ends.begin(), ends.end());
  return served;
}

void Offer::Set(Now now) {
  const absl::MutexLock lock(&mutex_);
  now_ = std::move(now);
}

Offer::Now Offer::Get() const {
  const absl::MutexLock lock(&mutex_);
  return now_;
}

std::uint32_t Intake::ContextTokens() const {
  const auto of_model = static_cast<std::uint32_t>(model_.config.max_context_tokens);
  const std::uint32_t of_workers = offer_.Get().max_context_tokens;
  return of_workers == 0 ? of_model : std::min(of_model, of_workers);
}

absl::StatusOr<std::vector<std::int32_t>> Intake::EncodeText(const std::string& text) const {
  if (text.empty()) return Invalid("prompt", "empty; at least one token is needed");
  absl::StatusOr<std::vector<std::int32_t>> ids = model_.tokenizer->Encode(text, true);
  if (!ids.ok()) return Named("prompt: ", ids.status());
  return ids;
}

absl::StatusOr<std::vector<std::int32_t>> Intake::EncodeChat(const v1::Chat& chat) const {
  if (chat.messages().empty()) return Invalid("chat.messages", "empty; at least one is needed");
  if (!model_.chat_format.has_value()) {
    return Invalid("chat", absl::StrCat("model \"", model_.name,
                                        "\" has no chat template that is known here (ChatML, "
                                        "Llama 3); send `prompt`"));
  }
  std::vector<model::ChatTurn> turns;
  for (const v1::ChatMessage& message : chat.messages())
    turns.push_back({.role = message.role(), .content = message.content()});
  absl::StatusOr<std::string> text =
      model::RenderChat(*model_.chat_format, turns, model_.default_system);
  if (!text.ok()) return Named("chat.", text.status());
  absl::StatusOr<std::vector<std::int32_t>> ids = model_.tokenizer->Encode(*text, true);
  if (!ids.ok()) return Named("chat: ", ids.status());
  return ids;
}

absl::Status Intake::CheckIds(const std::string& field,
                              const google::protobuf::RepeatedField<std::int32_t>& ids) const {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model_.config.vocabulary) continue;
    return Invalid(
        absl::StrCat(field, "[", i, "]"),
        absl::StrCat(ids[i], " is outside the vocabulary [0, ", model_.config.vocabulary, ")"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::int32_t>> Intake::Tokens(const v1::GenerateRequest& request) const {
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt:
      return EncodeText(request.prompt());
    case v1::GenerateRequest::kChat:
      return EncodeChat(request.chat());
    case v1::GenerateRequest::kTokens: {
      const auto& ids = request.tokens().ids();
      if (ids.empty()) return Invalid("tokens.ids", "empty; at least one token is needed");
      KVF_RETURN_IF_ERROR(CheckIds("tokens.ids", ids));
      return std::vector<std::int32_t>(ids.begin(), ids.end());
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Invalid("prompt", "missing; one of prompt, chat and tokens is needed");
}

absl::StatusOr<std::string> Intake::ResolveCodec(const std::string& name) const {
  if (name.empty()) return std::string();
  const absl::StatusOr<codec::Codec> codec = codec::FindCodec(name);
  if (!codec.ok()) return Named("codec: ", codec.status());
  const std::set<std::string> served = offer_.Get().codecs;
  for (const std::string& candidate : served) {
    const absl::StatusOr<codec::Codec> other = codec::FindCodec(candidate);
    if (other.ok() && other->Hash() == codec->Hash()) return candidate;
  }
  // Before any decode worker has come, nobody can say.
  if (served.empty()) return codec->name;
  return absl::NotFoundError(absl::StrCat("codec: no decode worker serves \"", name,
                                          "\"; served are: ", absl::StrJoin(served, ", ")));
}

absl::StatusOr<std::uint32_t> Intake::NewTokens(const v1::GenerateRequest& request,
                                                std::size_t prompt_tokens) const {
  const std::uint32_t context = ContextTokens();
  if (prompt_tokens >= context) {
    return Invalid("prompt", absl::StrCat(prompt_tokens, " tokens; the context holds ", context,
                                          ", the answer included"));
  }
  const std::uint32_t room = context - static_cast<std::uint32_t>(prompt_tokens);
  if (!request.has_max_tokens()) return std::min(room, kDefaultMaxTokens);
  if (request.max_tokens() < 1) {
    return Invalid("max_tokens", absl::StrCat(request.max_tokens(), "; at least 1 is needed"));
  }
  if (static_cast<std::uint32_t>(request.max_tokens()) > room) {
    return Invalid("max_tokens",
                   absl::StrCat(request.max_tokens(), "; the context of ", context,
                                " leaves room for ", room, " after a prompt of ", prompt_tokens));
  }
  return static_cast<std::uint32_t>(request.max_tokens());
}

absl::StatusOr<GenerateSpec> Intake::Generate(const v1::GenerateRequest& request) const {
  if (!request.model().empty() && request.model() != model_.name) {
    return absl::NotFoundError(absl::StrCat("model: \"", request.model(),
                                            "\" is not served here; this router serves \"",
                                            model_.name, "\""));
  }
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return Invalid("request_id", absl::StrCat(request.request_id().size(), " bytes; at most ",
                                              kMaxRequestIdBytes, " are allowed"));
  }
  GenerateSpec spec;
  spec.request_id =
      request.request_id().empty() ? TransferId::Random().ToHex() : request.request_id();
  KVF_ASSIGN_OR_RETURN(spec.codec, ResolveCodec(request.codec()));
  KVF_ASSIGN_OR_RETURN(spec.sampling, ToSampling(request.sampling()));
  spec.stop.assign(request.stop().begin(), request.stop().end());
  KVF_RETURN_IF_ERROR(model::StopMatcher::Create(spec.stop).status());
  if (request.stop_tokens_size() > kMaxStopTokens) {
    return Invalid("stop_tokens", absl::StrCat(request.stop_tokens_size(), " ids; at most ",
                                               kMaxStopTokens, " are allowed"));
  }
  KVF_RETURN_IF_ERROR(CheckIds("stop_tokens", request.stop_tokens()));
  spec.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  if (!request.ignore_eos()) {
    spec.stop_tokens.insert(spec.stop_tokens.end(), model_.end_tokens.begin(),
                            model_.end_tokens.end());
  }
  KVF_ASSIGN_OR_RETURN(spec.prompt, Tokens(request));
  KVF_ASSIGN_OR_RETURN(spec.max_new_tokens, NewTokens(request, spec.prompt.size()));
  return spec;
}

absl::StatusOr<std::vector<std::int32_t>> Intake::Count(
    const v1::CountTokensRequest& request) const {
  switch (request.input_case()) {
    case v1::CountTokensRequest::kPrompt:
      if (request.prompt().empty()) return std::vector<std::int32_t>();
      return EncodeText(request.prompt());
    case v1::CountTokensRequest::kChat:
      return EncodeChat(request.chat());
    case v1::CountTokensRequest::INPUT_NOT_SET:
      break;
  }
  return Invalid("prompt", "missing; one of prompt and chat is needed");
}

}  // namespace kvferry::router
