#include "model/pretokenizer.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

// An expression that backtracks its way past these bounds is no pre-tokenizer's: the published ones
// walk over a megabyte of any one kind of character well inside of them, and over a short text in
// proportion. PCRE2 counts the steps of each place that a match may begin at anew, so that with
// the bound of a long text a short one takes seconds.
constexpr std::uint64_t kMatchLimit = 50'000'000, kMatchLimitOfEmpty = 100'000,
                        kMatchLimitPerByte = 1000;
constexpr std::uint32_t kHeapLimitKib = 256 * 1024;
constexpr std::size_t kMaxExpressionBytes = 16 * 1024;
// Machine code keeps its backtracking here; where it does not suffice the interpreter takes over.
constexpr std::size_t kJitStackBytes = 1024 * 1024;

struct FreePcre2 {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, FreePcre2>;

std::string Pcre2Message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

std::uint32_t MatchLimit(std::size_t bytes) {
  return static_cast<std::uint32_t>(
      std::min(kMatchLimit, kMatchLimitOfEmpty + kMatchLimitPerByte * bytes));
}

// PCRE2's \s also takes U+180E, which has not been white space since Unicode 6.3.
std::string WithUnicodeWhiteSpace(std::string_view expression) {
  std::string result;
  for (std::size_t at = 0; at < expression.size(); ++at) {
    const char next = at + 1 < expression.size() ? expression[at + 1] : '\0';
    if (expression[at] != '\\' || next == '\0') {
      result.push_back(expression[at]);
      continue;
    }
    if (next == 's') {
      result += "\\p{White_Space}";
    } else if (next == 'S') {
      result += "\\P{White_Space}";
    } else {
      result.push_back('\\');
      result.push_back(next);
    }
    ++at;
  }
  return result;
}

}  // namespace

class PreTokenizer::Step {
 public:
  explicit Step(Owned<pcre2_code> code) : code_(std::move(code)) {}

  static absl::StatusOr<std::unique_ptr<Step>> Compile(const std::string& expression) {
    if (expression.size() > kMaxExpressionBytes) {
      return absl::InvalidArgumentError(absl::StrCat("pre-tokenizer expression has ",
                                                     expression.size(), " bytes; at most ",
                                                     kMaxExpressionBytes, " are allowed"));
    }
    const std::string rewritten = WithUnicodeWhiteSpace(expression);
    int code = 0;
    PCRE2_SIZE offset = 0;
    Owned<pcre2_code> compiled(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr));
    if (compiled == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("pre-tokenizer expression ",
                                                     Quoted(expression),
                                                     " does not compile: ", Pcre2Message(code)));
    }
    // Without machine code (not every platform has it) matching is slower, not different.
    pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE);
    return std::make_unique<Step>(std::move(compiled));
  }

  const pcre2_code* code() const { return code_.get(); }

 private:
  Owned<pcre2_code> code_;
};

namespace {

// What one thread needs for matching, kept for the thread's life.
class Matcher {
 public:
  static Matcher& OfThisThread() {
    thread_local Matcher matcher;
    return matcher;
  }

  // The next match at or after `from`, never an empty one. False: none.
  absl::StatusOr<bool> Find(const pcre2_code* code, std::string_view text, std::size_t from,
                            std::size_t& begin, std::size_t& end) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    constexpr std::uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    pcre2_set_match_limit(context_.get(), MatchLimit(text.size() - from));
    int rc = pcre2_match(code, subject, text.size(), from, kOptions, data_.get(), context_.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), from, kOptions | PCRE2_NO_JIT, data_.get(),
                       context_.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0) {
      return absl::InvalidArgumentError(absl::StrCat("pre-tokenizer failed at byte offset ", from,
                                                     " of a piece of ", text.size(),
                                                     " bytes: ", Pcre2Message(rc)));
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
    begin = offsets[0];
    end = offsets[1];
    // \K in a lookahead can put a match's begin behind its end, or a match before the last one.
    if (begin < from || end <= begin) {
      return absl::InvalidArgumentError("pre-tokenizer expression moves backwards: \\K is refused");
    }
    return true;
  }

 private:
  Matcher()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr)) {
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
  }

  Owned<pcre2_match_data> data_;
  Owned<pcre2_match_context> context_;
  Owned<pcre2_jit_stack> stack_;
};

}  // namespace

PreTokenizer::PreTokenizer(std::vector<std::unique_ptr<Step>> steps) : steps_(std::move(steps)) {}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<PreTokenizer> PreTokenizer::Create(std::span<const std::string> expressions) {
  std::vector<std::unique_ptr<Step>> steps;
  for (const std::string& expression : expressions) {
    KVF_ASSIGN_OR_RETURN(std::unique_ptr<Step> step, Step::Compile(expression));
    steps.push_back(std::move(step));
  }
  return PreTokenizer(std::move(steps));
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 absl::FunctionRef<void(std::string_view piece)> on_piece) const {
  if (text.empty()) return absl::OkStatus();
  return SplitFrom(0, text, on_piece);
}

absl::Status PreTokenizer::SplitFrom(
    std::size_t step, std::string_view text,
    absl::FunctionRef<void(std::string_view piece)> on_piece) const {
  if (step == steps_.size()) {
    on_piece(text);
    return absl::OkStatus();
  }
  Matcher& matcher = Matcher::OfThisThread();
  std::size_t done = 0;
  while (done < text.size()) {
    std::size_t begin = 0, end = 0;
    KVF_ASSIGN_OR_RETURN(const bool found,
                         matcher.Find(steps_[step]->code(), text, done, begin, end));
    if (!found) break;
    if (begin > done) {
      KVF_RETURN_IF_ERROR(SplitFrom(step + 1, text.substr(done, begin - done), on_piece));
    }
    KVF_RETURN_IF_ERROR(SplitFrom(step + 1, text.substr(begin, end - begin), on_piece));
    done = end;
  }
  return done < text.size() ? SplitFrom(step + 1, text.substr(done), on_piece) : absl::OkStatus();
}

const char kGpt2Expression[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::StatusOr<std::vector<std::string>> PreTokenizerExpressions(std::string_view gguf_pre) {
  struct Known {
    std::string name;
    std::vector<std::string> expressions;
  };
  static const auto& known = *new std::vector<Known>{
      {"gpt-2", {kGpt2Expression}},
      {"smollm", {R"(\p{N})", kGpt2Expression}},
      {"llama-bpe",
       {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
        R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
      {"qwen2",
       {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
        R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
  };
  std::vector<std::string> names;
  for (const Known& entry : known) {
    if (entry.name == gguf_pre) return entry.expressions;
    names.push_back(entry.name);
  }
  return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.pre is ", Quoted(gguf_pre),
                                               "; known are ", absl::StrJoin(names, ", ")));
}

}  // namespace kvferry::model
