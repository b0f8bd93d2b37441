// kvferry-calibrate: what codecs need to know of a model. `kvferry calibrate` starts it.
#include <CLI/CLI.hpp>

#include "bench/report.h"
#include "calibrate/commands.h"
#include "cli/parse.h"
#include "common/restart.h"

// Outside the try, CLI11 throws only for flags that we define wrongly.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  kvferry::KeepOpenMpFromSpinning(argv);
  CLI::App app("Find what a codec needs to know of a model of yours, from a text of yours.",
               "kvferry calibrate");
  app.require_subcommand(1);
  const nlohmann::json header = kvferry::bench::ReportHeader("calibrate", argc, argv);
  kvferry::calibrate::AddProfile(app, header);
  kvferry::calibrate::AddCodebooks(app, header);
  return kvferry::cli::ParseAndRun(app, argc, argv);
}
