#pragma once

#include <CLI/CLI.hpp>

#include "cli/output.h"

namespace kvferry::cli {

// Parses, and so runs, the commands of a program. Its exit code (cli/output.h): of the callback
// that threw CLI::RuntimeError, which has printed why, else of the flags.
inline int ParseAndRun(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return kExitOk;
}

}  // namespace kvferry::cli
