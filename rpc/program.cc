#include "rpc/program.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/config_loader.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace kvferry::rpc {
namespace {

// A lost node that takes longer to stop is ended by SIGALRM.
constexpr unsigned kLostStopSeconds = 10;

struct Flags {
  std::string config;
  std::vector<std::string> set;
  bool print_config = false;
  bool check_config = false;
};

constexpr char kSignals[] =
    "SIGTERM or one SIGINT: takes nothing new, finishes what runs, stops. A second one: stops at "
    "once.";

void AddFlags(const Program& program, CLI::App& app, Flags& flags) {
  app.add_option("--config", flags.config,
                 program.config->GetDescriptor()->name() + " of config.proto as textproto")
      ->check(CLI::ExistingFile);
  app.add_option("--set", flags.set, "path=value on top of --config; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--print_config", flags.print_config, "Prints the effective config and exits");
  app.add_flag("--check_config", flags.check_config, "Checks the config and exits");
  app.footer("Examples:\n" + program.examples + "\n\n" + kSignals);
}

// Why the node of this process is lost. Thread: any.
class Loss {
 public:
  // Wakes who waits for signals.
  void Set(const absl::Status& why) {
    {
      absl::MutexLock lock(&mutex_);
      if (!why_.ok()) return;
      why_ = why;
    }
    kill(getpid(), SIGTERM);
  }
  absl::Status why() const {
    absl::MutexLock lock(&mutex_);
    return why_;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
};

// Blocks until the node has been told to stop and is idle, or has been told twice, or is lost.
void ServeUntilSignal(ServingNode& node, const Loss& loss, const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  if (!loss.why().ok()) return;
  node.Drain();
  const timespec pause = {.tv_sec = 0, .tv_nsec = 100'000'000};
  while (!node.idle()) {
    if (sigtimedwait(&signals, nullptr, &pause) > 0) return;
  }
}

// What is left of a lost node would only fail in its destructors, and must not keep the process.
[[noreturn]] void ExitLost(const Program& program, ServingNode& node, const absl::Status& why) {
  alarm(kLostStopSeconds);
  node.Shutdown();
  std::cerr << program.name << ": " << why.ToString() << std::endl;
  std::_Exit(1);
}

absl::Status Run(const Program& program, const Flags& flags) {
  if (!flags.config.empty()) KVF_RETURN_IF_ERROR(LoadConfigFile(flags.config, program.config));
  KVF_RETURN_IF_ERROR(ApplySettings(flags.set, program.config));
  KVF_ASSIGN_OR_RETURN(const Program::Logging logging, program.complete());
  if (flags.print_config) std::cout << PrintConfig(*program.config);
  if (flags.print_config || flags.check_config) return absl::OkStatus();

  // Blocked before any thread starts, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  SetLogName(logging.name);
  KVF_RETURN_IF_ERROR(SetLogLevel(logging.level));
  Log(LogLevel::kInfo, "config", {{"effective", PrintConfig(*program.config)}});
  const auto loss = std::make_shared<Loss>();  // shared: on_lost may be kept for longer
  const Program::OnLost on_lost = [loss](const absl::Status& why) { loss->Set(why); };
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<ServingNode> node, program.start(on_lost));
  std::cout << "listening address=" << node->address() << std::endl;
  ServeUntilSignal(*node, *loss, signals);
  if (const absl::Status why = loss->why(); !why.ok()) ExitLost(program, *node, why);
  node->Shutdown();
  return absl::OkStatus();
}

}  // namespace

int RunProgram(const Program& program, int argc, char** argv) {
  CLI::App app(program.description, program.name);
  Flags flags;
  AddFlags(program, app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(program, flags);
  if (status.ok()) return 0;
  std::cerr << program.name << ": " << status.ToString() << '\n';
  return 1;
}

}  // namespace kvferry::rpc
