#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

// One function per subcommand of `kvferry calibrate`: it adds the command with its flags, help and
// callback. A callback that fails throws CLI::RuntimeError with the exit code after the error has
// been printed. header: bench::ReportHeader of this run, for what the command writes.
namespace kvferry::calibrate {

void AddCodebooks(CLI::App& app, const nlohmann::json& header);
void AddProfile(CLI::App& app, nlohmann::json header);

}  // namespace kvferry::calibrate
