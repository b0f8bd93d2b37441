#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// The two prompt formats that the supported models were trained on, written out in code: their
// Jinja templates only tell which one a model uses. What is not covered: tool calls, and the date
// header of Llama 3.1 and later (their original Llama 3 form is rendered).
namespace kvferry::model {

enum class ChatFormat { kChatMl, kLlama3 };

struct ChatTurn {
  std::string role;
  std::string content;
};

// Which of the known formats a model's Jinja template is. kUnimplemented: none of them.
absl::StatusOr<ChatFormat> DetectChatFormat(std::string_view jinja);
// The prompt that asks for the assistant's next turn. Encode it with parse_special. Marks of the
// format inside of a turn's content are taken as such, as the models' own templates do.
// kInvalidArgument: no turns, an unknown role, content that is not UTF-8.
// `default_system` is used when the first turn is not a system turn; empty: none.
absl::StatusOr<std::string> RenderChat(ChatFormat format, std::span<const ChatTurn> turns,
                                       std::string_view default_system);
// The default system prompt that the template itself carries (SmolLM2, Qwen2.5), or empty.
std::string DefaultSystemPrompt(std::string_view jinja);

}  // namespace kvferry::model
