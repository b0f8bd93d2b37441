#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvferry/v1/inference.pb.h"
#include "model/chat_template.h"
#include "model/model_config.h"
#include "model/tokenizer.h"
#include "router/types.h"

namespace kvferry::router {

// The model as far as a router knows it: no weights. Immutable. Thread: any.
struct ServedModel {
  // From a .gguf file or a Hugging Face directory.
  static absl::StatusOr<ServedModel> Load(const std::string& path, const std::string& name);

  std::string name;
  model::ModelConfig config;
  std::unique_ptr<model::Tokenizer> tokenizer;
  std::optional<model::ChatFormat> chat_format;  // empty: the template is of another kind
  std::string default_system;
  std::vector<std::int32_t> end_tokens;  // of tokenizer and configuration
};

// What the attached workers offer, for those who are not on the loop. Thread: any.
class Offer {
 public:
  struct Now {
    std::set<std::string> codecs;  // of decode workers seen since the start: worth waiting for
    std::set<std::string> attached_codecs;
    std::uint32_t max_context_tokens = 0;  // the largest attached; 0: none attached
  };
  void Set(Now now);
  Now Get() const;

 private:
  mutable absl::Mutex mutex_;
  Now now_ ABSL_GUARDED_BY(mutex_);
};

// Checks and tokenizes clients' messages. Errors name the field, its value and the limit:
// kInvalidArgument; kNotFound: model or codec. Thread: any.
class Intake {
 public:
  Intake(const ServedModel& model, const Offer& offer) : model_(model), offer_(offer) {}

  absl::StatusOr<GenerateSpec> Generate(const v1::GenerateRequest& request) const;
  absl::StatusOr<std::vector<std::int32_t>> Count(const v1::CountTokensRequest& request) const;
  std::uint32_t ContextTokens() const;

 private:
  absl::StatusOr<std::vector<std::int32_t>> Tokens(const v1::GenerateRequest& request) const;
  absl::StatusOr<std::vector<std::int32_t>> EncodeText(const std::string& text) const;
  absl::StatusOr<std::vector<std::int32_t>> EncodeChat(const v1::Chat& chat) const;
  absl::Status CheckIds(const std::string& field,
                        const google::protobuf::RepeatedField<std::int32_t>& ids) const;
  absl::StatusOr<std::string> ResolveCodec(const std::string& name) const;
  absl::StatusOr<std::uint32_t> NewTokens(const v1::GenerateRequest& request,
                                          std::size_t prompt_tokens) const;

  const ServedModel& model_;
  const Offer& offer_;
};

}  // namespace kvferry::router
