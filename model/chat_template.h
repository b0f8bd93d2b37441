#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry::model {

enum class ChatFormat { kChatMl, kLlama3 };

struct ChatTurn {
  std::string role;
  std::string content;
};

// Which of the known formats a model's Jinja template is. kUnimplemented: none of them.
absl::StatusOr<ChatFormat> DetectChatFormat(std::string_view jinja);
// The prompt that asks for the assistant's next turn. kInvalidArgument: no turns, an unknown role.
// `default_system` is used when the first turn is not a system turn; empty: none.
absl::StatusOr<std::string> RenderChat(ChatFormat format, std::span<const ChatTurn> turns,
                                       std::string_view default_system);
// The default system prompt that the template itself carries (SmolLM2, Qwen2.5), or empty.
std::string DefaultSystemPrompt(std::string_view jinja);

}  // namespace kvferry::model
