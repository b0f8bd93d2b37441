#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace kvferry::cli {
namespace {

// This process becomes kvferry-COMMAND, which stands beside it: it needs LibTorch, this one does
// not. Returns only when that fails.
absl::Status Become(const std::string& command, const std::vector<std::string>& arguments) {
  const std::string path = (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
                            absl::StrCat("kvferry-", command))
                               .string();
  // As it was typed: what the program calls itself, in help and reports.
  std::string name = absl::StrCat("kvferry bench ", command);
  std::vector<char*> argv = {name.data()};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot start '", path,
                                                 "': build it first (CMake option KVFERRY_BENCH), "
                                                 "or install it beside kvferry"));
}

}  // namespace

void AddBench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Measure codecs on a model of yours");
  command->require_subcommand(1);
  CLI::App* quality = command->add_subcommand(
      "quality", "What each codec does to a model's answers, through the code that serves them");
  // All flags, --help too, are those of the program that does the work.
  quality->set_help_flag();
  quality->prefix_command();
  quality->callback(
      [quality] { throw CLI::RuntimeError(Fail(Become("quality", quality->remaining()))); });
}

}  // namespace kvferry::cli
