#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/parse.h"

// Outside the try, CLI11 throws only for flags that we define wrongly.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  CLI::App app(
      "Prefill and decode of language models on different machines, with a compressed KV cache "
      "between them.",
      "kvferry");
  app.require_subcommand(1);
  app.set_version_flag("--version", "kvferry 0.1.0");
  app.footer(R"(Examples:
  kvferry serve --model SmolLM2-135M-Instruct.Q4_1.gguf       all three roles on this machine, until Ctrl-C
  kvferry generate --prompt "Why is the sky blue?"            ask the router that serve has started
  kvferry status                                              workers, pools, transfers
  kvferry codecs --model SmolLM2-135M-Instruct.Q4_1.gguf      what a token costs with each codec
  kvferry bench quality --model SmolLM2-135M-Instruct.Q4_1.gguf --text wiki.test.raw
                                                              what each codec does to the answers
  kvferry calibrate profile --model m.gguf --text valid.txt --budget-bits 3.5 --out mine.json
                                                              bits of each layer, for codec kvtuner:mine.json

Exit codes: 0 done, 1 failed, 2 wrong flags or request, 3 nobody answers or time is up, 4 refused for now (try later),
5 an operator must act (certificates, roles, fingerprints), 6 data did not pass its check.)");
  kvferry::cli::AddServe(app);
  kvferry::cli::AddGenerate(app);
  kvferry::cli::AddStatus(app);
  kvferry::cli::AddInspect(app);
  kvferry::cli::AddCodecs(app);
  kvferry::cli::AddCerts(app);
  kvferry::cli::AddBench(app);
  kvferry::cli::AddCalibrate(app);
  return kvferry::cli::ParseAndRun(app, argc, argv);
}
