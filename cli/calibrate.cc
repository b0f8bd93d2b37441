#include "cli/become.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace kvferry::cli {

void AddCalibrate(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("calibrate", "Find what a codec needs to know of a model of yours");
  // All flags and subcommands, --help too, are those of the program that does the work.
  command->set_help_flag();
  command->prefix_command();
  command->callback([command] {
    throw CLI::RuntimeError(
        Fail(Become("kvferry-calibrate", "kvferry calibrate", command->remaining())));
  });
}

}  // namespace kvferry::cli
