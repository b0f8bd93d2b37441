// kvferry-router: the front door; finds workers for every request and keeps it going when one is
// lost.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/config_loader.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "router/config.h"
#include "router/wiring.h"

namespace {

using namespace kvferry;

struct Flags {
  std::string config;
  std::vector<std::string> set;
  bool print_config = false;
  bool check_config = false;
};

constexpr char kExamples[] = R"(Examples:
  kvferry-router --config router.textproto
  kvferry-router --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf --set tls.insecure=true
  kvferry-router --config router.textproto --set silence_limit=1s --print_config

SIGTERM or one SIGINT: takes nothing new, finishes what runs, stops. A second one: stops at once.)";

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--config", flags.config, "RouterConfig of config.proto as textproto")
      ->check(CLI::ExistingFile);
  app.add_option("--set", flags.set, "path=value on top of --config; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--print_config", flags.print_config, "Prints the effective config and exits");
  app.add_flag("--check_config", flags.check_config, "Checks the config and exits");
  app.footer(kExamples);
}

absl::StatusOr<v1::RouterConfig> ReadConfig(const Flags& flags) {
  v1::RouterConfig config;
  if (!flags.config.empty()) KVF_RETURN_IF_ERROR(LoadConfigFile(flags.config, &config));
  KVF_RETURN_IF_ERROR(ApplySettings(flags.set, &config));
  KVF_RETURN_IF_ERROR(router::CompleteConfig(config));
  return config;
}

// Blocks until the node has been told to stop and is idle, or has been told twice.
void ServeUntilSignal(router::RouterNode& node, const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  node.Drain();
  while (!node.idle()) {
    const timespec pause = {.tv_sec = 0, .tv_nsec = 100'000'000};
    if (sigtimedwait(&signals, nullptr, &pause) > 0) return;
  }
}

absl::Status Run(const Flags& flags) {
  KVF_ASSIGN_OR_RETURN(const v1::RouterConfig config, ReadConfig(flags));
  if (flags.print_config) std::cout << PrintConfig(config);
  if (flags.print_config || flags.check_config) return absl::OkStatus();

  // Blocked before any thread starts, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  SetLogName(config.name());
  KVF_RETURN_IF_ERROR(SetLogLevel(config.log().level()));
  Log(LogLevel::kInfo, "config", {{"effective", PrintConfig(config)}});
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<router::RouterNode> node,
                       router::RouterNode::Create(config));
  std::cout << "listening address=" << node->address() << std::endl;
  ServeUntilSignal(*node, signals);
  node->Shutdown();
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "KVFerry router: takes requests, finds workers for them, runs them again when a worker is "
      "lost");
  Flags flags;
  AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::cerr << "kvferry-router: " << status.ToString() << '\n';
  return 1;
}
