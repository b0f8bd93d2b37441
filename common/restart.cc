#include "common/restart.h"

#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace kvferry {

void RestartWithEnvironment(const char* name, const char* value, char** argv) {
  setenv(name, value, 1);
  execv("/proc/self/exe", argv);
  Log(LogLevel::kWarning, "restart_failed", {{"setting", name}, {"why", std::strerror(errno)}});
}

void KeepOpenMpFromSpinning(char** argv) {
  if (getenv("GOMP_SPINCOUNT") != nullptr || getenv("OMP_WAIT_POLICY") != nullptr) return;
  RestartWithEnvironment("GOMP_SPINCOUNT", "2000", argv);
}

}  // namespace kvferry
