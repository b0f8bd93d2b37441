#pragma once

#include <CLI/CLI.hpp>

// One function per subcommand of `kvferry`: it adds the command with its flags, help and callback.
// A callback that fails throws CLI::RuntimeError with the exit code after the error has been
// printed.
namespace kvferry::cli {

void AddServe(CLI::App& app);
void AddGenerate(CLI::App& app);
void AddStatus(CLI::App& app);
void AddInspect(CLI::App& app);
void AddCodecs(CLI::App& app);
void AddCerts(CLI::App& app);
void AddBench(CLI::App& app);
void AddCalibrate(CLI::App& app);

}  // namespace kvferry::cli
