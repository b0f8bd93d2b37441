#include "model/chat_template.h"

#include <initializer_list>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

constexpr std::string_view kChatMlStart = "<|im_start|>";
constexpr std::string_view kChatMlEnd = "<|im_end|>";
constexpr std::string_view kLlama3Start = "<|start_header_id|>";

// As Jinja's trim does for ASCII.
std::string_view Trimmed(std::string_view text) {
  static constexpr std::string_view kSpace = " \t\n\v\f\r";
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

void Append(std::initializer_list<std::string_view> parts, std::string& text) {
  for (const std::string_view part : parts) text += part;
}

void AppendTurn(ChatFormat format, std::string_view role, std::string_view content,
                std::string& prompt) {
  switch (format) {
    case ChatFormat::kChatMl:
      Append({kChatMlStart, role, "\n", content, kChatMlEnd, "\n"}, prompt);
      return;
    case ChatFormat::kLlama3:
      Append({kLlama3Start, role, "<|end_header_id|>\n\n", Trimmed(content), "<|eot_id|>"}, prompt);
      return;
  }
}

absl::Status CheckTurns(std::span<const ChatTurn> turns) {
  if (turns.empty()) return absl::InvalidArgumentError("chat.messages is empty");
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const std::string& role = turns[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(absl::StrCat("chat.messages[", i, "].role is ",
                                                     Quoted(role),
                                                     "; allowed are system, user, assistant"));
    }
    KVF_RETURN_IF_ERROR(
        CheckUtf8(turns[i].content, absl::StrCat("chat.messages[", i, "].content")));
  }
  return absl::OkStatus();
}

// A Jinja string literal's inside, as text.
std::string Unescape(std::string_view literal) {
  std::string text;
  for (std::size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text.push_back(literal[i]);
      continue;
    }
    ++i;
    text.push_back(literal[i] == 'n' ? '\n' : literal[i] == 't' ? '\t' : literal[i]);
  }
  return text;
}

// Where `quote` stands without a backslash before it; npos: nowhere.
std::size_t FindUnescaped(std::string_view text, char quote) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == quote) return i;
    if (text[i] == '\\') ++i;
  }
  return std::string_view::npos;
}

}  // namespace

absl::StatusOr<ChatFormat> DetectChatFormat(std::string_view jinja) {
  if (jinja.find(kChatMlStart) != std::string_view::npos) return ChatFormat::kChatMl;
  if (jinja.find(kLlama3Start) != std::string_view::npos) return ChatFormat::kLlama3;
  return absl::UnimplementedError(
      jinja.empty() ? "the model has no chat template: send a prompt instead of a chat"
                    : "the model's chat template is neither ChatML nor Llama 3: send a prompt "
                      "instead of a chat");
}

absl::StatusOr<std::string> RenderChat(ChatFormat format, std::span<const ChatTurn> turns,
                                       std::string_view default_system) {
  KVF_RETURN_IF_ERROR(CheckTurns(turns));
  std::string prompt;
  if (format == ChatFormat::kLlama3) prompt = "<|begin_of_text|>";
  if (turns[0].role != "system" && !default_system.empty()) {
    AppendTurn(format, "system", default_system, prompt);
  }
  for (const ChatTurn& turn : turns) AppendTurn(format, turn.role, turn.content, prompt);
  switch (format) {
    case ChatFormat::kChatMl:
      Append({kChatMlStart, "assistant\n"}, prompt);
      break;
    case ChatFormat::kLlama3:
      Append({kLlama3Start, "assistant<|end_header_id|>\n\n"}, prompt);
      break;
  }
  return prompt;
}

std::string DefaultSystemPrompt(std::string_view jinja) {
  static constexpr std::string_view kSystem = "<|im_start|>system";
  for (std::size_t at = jinja.find(kSystem); at != std::string_view::npos;
       at = jinja.find(kSystem, at + 1)) {
    std::string_view literal = jinja.substr(at + kSystem.size());
    // Inside of an expression the text ends with the quote that opened it, else with a brace.
    const char opened_by = at > 0 ? jinja[at - 1] : '\0';
    literal =
        literal.substr(0, opened_by == '\'' || opened_by == '"' ? FindUnescaped(literal, opened_by)
                                                                : literal.find('{'));
    // A line end, itself or as Jinja's escape.
    if (literal.starts_with("\n")) {
      literal.remove_prefix(1);
    } else if (literal.starts_with("\\n")) {
      literal.remove_prefix(2);
    } else {
      continue;
    }
    const std::size_t end = literal.find(kChatMlEnd);
    if (end == std::string_view::npos || end == 0) continue;  // put together by the template
    return Unescape(literal.substr(0, end));
  }
  return "";
}

}  // namespace kvferry::model
