#include <grpcpp/client_context.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "common/status_macros.h"
#include "kvferry/v1/inference.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/status.h"

namespace kvferry::cli {
namespace {

struct GenerateFlags {
  ConnectionFlags connection;
  OutputFormat output = OutputFormat::kTable;
  std::string prompt, prompt_file, system, model, codec, request_id;
  bool raw = false, quiet = false, ignore_eos = false;
  std::optional<int> max_tokens, top_k;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
};

absl::StatusOr<std::string> ReadPrompt(const GenerateFlags& flags) {
  if (!flags.prompt_file.empty()) {
    if (flags.prompt_file == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
    std::ifstream file(flags.prompt_file, std::ios::binary);
    if (!file)
      return absl::NotFoundError(
          absl::StrCat("cannot read the prompt file '", flags.prompt_file, "'"));
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  if (flags.prompt.empty())
    return absl::InvalidArgumentError(
        "no prompt: pass --prompt TEXT or --prompt-file FILE ('-' is stdin)");
  return flags.prompt;
}

absl::StatusOr<v1::GenerateRequest> BuildRequest(const GenerateFlags& flags) {
  KVF_ASSIGN_OR_RETURN(std::string prompt, ReadPrompt(flags));
  v1::GenerateRequest request;
  request.set_request_id(flags.request_id);
  request.set_model(flags.model);
  request.set_codec(flags.codec);
  if (flags.raw) {
    request.set_prompt(std::move(prompt));
  } else {
    if (!flags.system.empty()) {
      v1::ChatMessage* system = request.mutable_chat()->add_messages();
      system->set_role("system");
      system->set_content(flags.system);
    }
    v1::ChatMessage* user = request.mutable_chat()->add_messages();
    user->set_role("user");
    user->set_content(std::move(prompt));
  }
  if (flags.max_tokens) request.set_max_tokens(*flags.max_tokens);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.min_p) sampling.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) sampling.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.seed) sampling.set_seed(*flags.seed);
  for (const std::string& stop : flags.stop) request.add_stop(stop);
  request.set_ignore_eos(flags.ignore_eos);
  return request;
}

std::string ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    default:
      return "unknown";
  }
}

// The hand-off summary: what was shipped and what 16 bit would have cost. Without a hand-off: what
// had been shipped at the first token.
std::string Summary(const v1::Started& started, const v1::Finished& finished) {
  const v1::HandoffStats& handoff = finished.handoff();
  const double shipped = static_cast<double>(handoff.payload_bytes() + handoff.header_bytes());
  const double raw16 = static_cast<double>(handoff.raw16_bytes());
  std::vector<std::vector<std::string>> rows = {
      {"hand-off", handoff.adopted() ? "" : "none: the answer ended before it"},
      {"  prompt tokens", absl::StrCat(finished.prompt_tokens())},
      {"  generated tokens",
       absl::StrCat(finished.completion_tokens(), " (", ReasonName(finished.reason()), ")")},
      {"  codec", started.codec()},
      {"  bytes shipped",
       absl::StrFormat("%s in %d chunks", FormatBytes(shipped), handoff.chunks())},
      {"  as 16 bit", handoff.adopted() ? absl::StrFormat("%s (%.2f times as much)",
                                                          FormatBytes(raw16), raw16 / shipped)
                                        : FormatBytes(raw16)},
      {"  time to first token", FormatSeconds(rpc::ToSeconds(finished.time_to_first_token()))},
      {"  time per token", FormatSeconds(rpc::ToSeconds(finished.time_per_token()))},
      {"  prefill, exposed",
       absl::StrCat(
           FormatSeconds(rpc::ToSeconds(handoff.prefill_time())), ", ",
           handoff.adopted() ? FormatSeconds(rpc::ToSeconds(handoff.exposed_time())) : "none")},
      {"  transport", handoff.transport()},
      {"  workers", absl::StrCat(finished.prefill_worker(), " -> ", finished.decode_worker())},
  };
  if (finished.attempts() > 1)
    rows.push_back({"  attempts", absl::StrCat(finished.attempts(), " (a worker was lost)")});
  return FormatTable(rows);
}

nlohmann::json ToJson(const v1::Started& started) {
  return {{"event", "started"},
          {"request_id", started.request_id()},
          {"model", started.model()},
          {"codec", started.codec()},
          {"prompt_tokens", started.prompt_tokens()},
          {"seed", started.seed()}};
}

nlohmann::json ToJson(const v1::Tokens& tokens) {
  return {{"event", "tokens"},
          {"ids", std::vector<int>(tokens.ids().begin(), tokens.ids().end())},
          {"text", tokens.text()},
          {"first_index", tokens.first_index()}};
}

nlohmann::json ToJson(const v1::Finished& finished) {
  const v1::HandoffStats& handoff = finished.handoff();
  return {{"event", "finished"},
          {"reason", ReasonName(finished.reason())},
          {"prompt_tokens", finished.prompt_tokens()},
          {"completion_tokens", finished.completion_tokens()},
          {"time_to_first_token_s", rpc::ToSeconds(finished.time_to_first_token())},
          {"time_per_token_s", rpc::ToSeconds(finished.time_per_token())},
          {"attempts", finished.attempts()},
          {"prefill_worker", finished.prefill_worker()},
          {"decode_worker", finished.decode_worker()},
          {"handoff",
           {{"adopted", handoff.adopted()},
            {"payload_bytes", handoff.payload_bytes()},
            {"header_bytes", handoff.header_bytes()},
            {"raw16_bytes", handoff.raw16_bytes()},
            {"chunks", handoff.chunks()},
            {"resent_chunks", handoff.resent_chunks()},
            {"transport", handoff.transport()},
            {"prefill_time_s", rpc::ToSeconds(handoff.prefill_time())},
            {"exposed_time_s", rpc::ToSeconds(handoff.exposed_time())}}}};
}

// Prints the stream as it comes.
class Printer {
 public:
  Printer(OutputFormat format, bool quiet) : format_(format), quiet_(quiet) {}

  void Print(const v1::GenerateEvent& event) {
    if (event.has_started()) started_ = event.started();
    if (format_ == OutputFormat::kJson) {
      PrintJson(event);
    } else if (event.has_tokens()) {
      std::cout << event.tokens().text() << std::flush;
    } else if (event.has_finished()) {
      std::cout << '\n' << std::flush;
      if (!quiet_) std::cerr << '\n' << Summary(started_, event.finished());
    }
  }

 private:
  static void PrintJson(const v1::GenerateEvent& event) {
    if (event.has_started()) std::cout << ToJson(event.started()).dump() << std::endl;
    if (event.has_tokens()) std::cout << ToJson(event.tokens()).dump() << std::endl;
    if (event.has_finished()) std::cout << ToJson(event.finished()).dump() << std::endl;
  }

  OutputFormat format_;
  bool quiet_;
  v1::Started started_;
};

absl::Status Generate(const GenerateFlags& flags) {
  KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, BuildRequest(flags));
  KVF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                       flags.connection.Connect(rpc::Role::kRouter));
  const std::unique_ptr<v1::Inference::Stub> stub = v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::milliseconds(static_cast<std::int64_t>(flags.connection.timeout_s * 1000)));
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader = stub->Generate(&context, request);
  Printer printer(flags.output, flags.quiet);
  v1::GenerateEvent event;
  while (reader->Read(&event)) printer.Print(event);
  return rpc::FromGrpc(reader->Finish());
}

}  // namespace

void AddGenerate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Ask a router and stream the answer");
  auto flags = std::make_shared<GenerateFlags>();
  flags->connection.AddTo(*command);
  AddOutputFlag(*command, flags->output);
  command->add_option("--prompt", flags->prompt,
                      "the user's turn, or with --raw the text as it is");
  command->add_option("--prompt-file", flags->prompt_file,
                      "read the prompt from a file, '-' is stdin");
  command->add_option("--system", flags->system,
                      "system turn of the chat template [the model's own]");
  command->add_flag("--raw", flags->raw, "no chat template");
  command->add_option("--max-tokens", flags->max_tokens,
                      "[what the context still holds, at most 512]");
  command->add_option("--temperature", flags->temperature, "0 is greedy [0]");
  command->add_option("--top-k", flags->top_k, "[off]");
  command->add_option("--top-p", flags->top_p, "[1]");
  command->add_option("--min-p", flags->min_p, "[0]");
  command->add_option("--repetition-penalty", flags->repetition_penalty, "[1]");
  command->add_option("--seed", flags->seed, "[random]");
  command->add_option("--stop", flags->stop, "a stop string; repeatable");
  command->add_flag("--ignore-eos", flags->ignore_eos, "go on after the model's end token");
  command->add_option("--model", flags->model, "[the one that the router serves]");
  command->add_option("--codec", flags->codec,
                      "only decode workers with this codec, see `kvferry codecs`");
  command->add_option("--request-id", flags->request_id, "[chosen by the router]");
  command->add_flag("--quiet", flags->quiet, "no hand-off summary");
  command->footer(R"(Examples:
  kvferry generate --prompt "Why is the sky blue?"
  kvferry generate --raw --prompt-file book.txt --max-tokens 64 --temperature 0.8 --seed 7
  kvferry generate --prompt "List three rivers." --output json | jq -r 'select(.event=="tokens").text')");
  command->callback([flags] {
    if (const absl::Status done = Generate(*flags); !done.ok()) throw CLI::RuntimeError(Fail(done));
  });
}

}  // namespace kvferry::cli
