#include "model/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/tokenizer.h"

namespace kvferry::model {
namespace {

using ::testing::HasSubstr;

constexpr char kSmolLm2[] =
    R"({% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %})";

// The beginning of Qwen2.5's, with its first branch for tools.
constexpr char kQwen25[] = R"({%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %})";

constexpr char kLlama3[] =
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ "
    "'<|eot_id|>' %}{% endfor %}";

TEST(ChatTemplateTest, Detection) {
  EXPECT_EQ(*DetectChatFormat(kSmolLm2), ChatFormat::kChatMl);
  EXPECT_EQ(*DetectChatFormat(kQwen25), ChatFormat::kChatMl);
  EXPECT_EQ(*DetectChatFormat(kLlama3), ChatFormat::kLlama3);
  EXPECT_EQ(DetectChatFormat("[INST] {{ x }} [/INST]").status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(DetectChatFormat("").status().message()), HasSubstr("no chat template"));
}

TEST(ChatTemplateTest, DefaultSystemPrompt) {
  EXPECT_EQ(DefaultSystemPrompt(kSmolLm2),
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_EQ(DefaultSystemPrompt(kQwen25),
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
  EXPECT_EQ(DefaultSystemPrompt(kLlama3), "");
  EXPECT_EQ(DefaultSystemPrompt(""), "");
  EXPECT_EQ(DefaultSystemPrompt("<|im_start|>system"), "");
  EXPECT_EQ(DefaultSystemPrompt("'<|im_start|>system\\nIt\\'s me<|im_end|>'"), "It's me");
  EXPECT_EQ(DefaultSystemPrompt("<|im_start|>system\nplain<|im_end|>"), "plain");
  EXPECT_EQ(DefaultSystemPrompt("<|im_start|>system\n{{ x }}<|im_end|>"), "");
}

TEST(ChatTemplateTest, ChatMl) {
  const ChatTurn turns[] = {{"user", " Hi "}, {"assistant", "Hello"}, {"user", "Bye"}};
  EXPECT_EQ(*RenderChat(ChatFormat::kChatMl, turns, "Be kind"),
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n");
  const ChatTurn with_system[] = {{"system", "Own"}, {"user", "Hi"}};
  EXPECT_EQ(*RenderChat(ChatFormat::kChatMl, with_system, "Be kind"),
            "<|im_start|>system\nOwn<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST(ChatTemplateTest, Llama3) {
  const ChatTurn turns[] = {{"user", " Hi\n"}};
  EXPECT_EQ(*RenderChat(ChatFormat::kLlama3, turns, ""),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplateTest, BadTurnsAreNamed) {
  EXPECT_EQ(RenderChat(ChatFormat::kChatMl, {}, "").status().code(),
            absl::StatusCode::kInvalidArgument);
  const ChatTurn role[] = {{"user", "x"}, {"root", "x"}};
  EXPECT_THAT(std::string(RenderChat(ChatFormat::kChatMl, role, "").status().message()),
              HasSubstr("chat.messages[1].role is \"root\""));
  const ChatTurn content[] = {{"user", "ab\xFF"}};
  EXPECT_THAT(std::string(RenderChat(ChatFormat::kChatMl, content, "").status().message()),
              HasSubstr("chat.messages[0].content is not valid UTF-8 at byte offset 2"));
}

// The ids that the model was trained on: marks are single tokens.
TEST(ChatTemplateTest, DemoModelPrompt) {
  const auto tokenizer = Tokenizer::Load(KVFERRY_DEMO_MODEL);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string& jinja = (*tokenizer)->chat_template();
  EXPECT_EQ(jinja, kSmolLm2);
  const ChatTurn turns[] = {{"user", "Hi"}};
  const auto prompt = RenderChat(*DetectChatFormat(jinja), turns, DefaultSystemPrompt(jinja));
  ASSERT_TRUE(prompt.ok());
  const auto ids = (*tokenizer)->Encode(*prompt, /*parse_special=*/true);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(std::count(ids->begin(), ids->end(), 1), 3);
  EXPECT_EQ(std::count(ids->begin(), ids->end(), 2), 2);
  EXPECT_EQ(ids->front(), 1);
}

}  // namespace
}  // namespace kvferry::model
