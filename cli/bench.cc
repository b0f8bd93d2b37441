#include "cli/become.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace kvferry::cli {

void AddBench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Measure codecs on a model of yours");
  command->require_subcommand(1);
  CLI::App* quality = command->add_subcommand(
      "quality", "What each codec does to a model's answers, through the code that serves them");
  // All flags, --help too, are those of the program that does the work.
  quality->set_help_flag();
  quality->prefix_command();
  quality->callback([quality] {
    throw CLI::RuntimeError(
        Fail(Become("kvferry-quality", "kvferry bench quality", quality->remaining())));
  });
}

}  // namespace kvferry::cli
