#include "cli/become.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace kvferry::cli {

absl::Status Become(const std::string& program, const std::string& name,
                    const std::vector<std::string>& arguments) {
  const std::string path =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / program).string();
  std::vector<char*> argv = {const_cast<char*>(name.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot start '", path,
                                                 "': build it first (CMake option KVFERRY_BENCH), "
                                                 "or install it beside kvferry"));
}

}  // namespace kvferry::cli
