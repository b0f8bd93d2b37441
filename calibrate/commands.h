#pragma once

#include <CLI/CLI.hpp>

// One function per subcommand of `kvferry calibrate`: it adds the command with its flags, help and
// callback. A callback that fails throws CLI::RuntimeError with the exit code after the error has
// been printed.
namespace kvferry::calibrate {}  // namespace kvferry::calibrate
