// kvferry-decode: adopts compressed caches and generates on them.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config_loader.h"
#include "common/log.h"
#include "common/restart.h"
#include "common/status_macros.h"
#include "decode_node/config.h"
#include "decode_node/wiring.h"

namespace {

using namespace kvferry;

struct Flags {
  std::string config;
  std::vector<std::string> set;
  bool print_config = false;
  bool check_config = false;
};

constexpr char kExamples[] = R"(Examples:
  kvferry-decode --config decode.textproto
  kvferry-decode --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf \
      --set worker.router_addresses+=127.0.0.1:7300 --set tls.insecure=true
  kvferry-decode --config decode.textproto --set codec=kivi-2-g64 --print_config

SIGTERM or one SIGINT: takes nothing new, finishes what runs, stops. A second one: stops at once.)";

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--config", flags.config, "DecodeConfig of config.proto as textproto")
      ->check(CLI::ExistingFile);
  app.add_option("--set", flags.set, "path=value on top of --config; repeatable")
      ->allow_extra_args(false);
  app.add_flag("--print_config", flags.print_config, "Prints the effective config and exits");
  app.add_flag("--check_config", flags.check_config, "Checks the config and exits");
  app.footer(kExamples);
}

absl::StatusOr<v1::DecodeConfig> ReadConfig(const Flags& flags) {
  v1::DecodeConfig config;
  if (!flags.config.empty()) KVF_RETURN_IF_ERROR(LoadConfigFile(flags.config, &config));
  KVF_RETURN_IF_ERROR(ApplySettings(flags.set, &config));
  KVF_RETURN_IF_ERROR(decode::CompleteConfig(config));
  return config;
}

// Blocks until the node has been told to stop and is idle, or has been told twice.
void ServeUntilSignal(decode::DecodeNode& node, const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  node.Drain();
  const timespec now = {};
  while (!node.WaitIdle(absl::Milliseconds(100))) {
    if (sigtimedwait(&signals, nullptr, &now) > 0) return;
  }
}

absl::Status Run(const Flags& flags) {
  KVF_ASSIGN_OR_RETURN(const v1::DecodeConfig config, ReadConfig(flags));
  if (flags.print_config) std::cout << PrintConfig(config);
  if (flags.print_config || flags.check_config) return absl::OkStatus();

  // Blocked before any thread starts, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  SetLogName(config.worker().name());
  KVF_RETURN_IF_ERROR(SetLogLevel(config.log().level()));
  Log(LogLevel::kInfo, "config", {{"effective", PrintConfig(config)}});
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<decode::DecodeNode> node,
                       decode::DecodeNode::Create(config));
  std::cout << "listening address=" << node->address() << std::endl;
  ServeUntilSignal(*node, signals);
  node->Shutdown();
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  // LibTorch's OpenMP threads would spin for long after each product and take the cores from the
  // threads that attend, quantize and ship. The runtime reads this before main.
  if (std::getenv("GOMP_SPINCOUNT") == nullptr && std::getenv("OMP_WAIT_POLICY") == nullptr) {
    RestartWithEnvironment("GOMP_SPINCOUNT", "2000", argv);
  }
  CLI::App app("KVFerry decode worker: adopts compressed KV caches and generates on them");
  Flags flags;
  AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::cerr << "kvferry-decode: " << status.ToString() << '\n';
  return 1;
}
