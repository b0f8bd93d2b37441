#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "common/status_macros.h"
#include "kvcodec/open_codec.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/certificates.h"
#include "rpc/config_checks.h"

namespace kvferry::cli {
namespace {

constexpr absl::Duration kStartLimit = absl::Seconds(120);
constexpr absl::Duration kStopLimit = absl::Seconds(10);

struct ServeFlags {
  std::string model;
  std::string listen = "127.0.0.1:7300";
  std::string codec;
  std::string compute;
  std::string random_weights;
  std::string folder = ".kvferry";
  int prefill_workers = 1;
  int decode_workers = 1;
  std::vector<std::string> set_prefill, set_decode, set_router;
};

std::string ProgramFolder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
}

// One started role with a name for messages and logs.
struct Started {
  std::string name;
  std::unique_ptr<ChildProcess> process;
  std::string address;
};

// The three roles as child processes of this one.
class LocalCluster {
 public:
  explicit LocalCluster(const ServeFlags& flags) : flags_(flags) {}

  absl::Status Start() {
    KVF_RETURN_IF_ERROR(rpc::MakeCertificates(Certs()));
    KVF_RETURN_IF_ERROR(StartRole("router", rpc::Role::kRouter,
                                  {absl::StrCat("listen_address=", flags_.listen)},
                                  flags_.set_router));
    const std::string router = processes_.back().address;
    const std::string codebooks = codec::CodebooksPath(flags_.codec);
    for (int i = 0; i < flags_.decode_workers; ++i) {
      std::vector<std::string> settings = WorkerSettings(absl::StrCat("decode-", i), router);
      if (!flags_.codec.empty()) settings.push_back(absl::StrCat("codec=", flags_.codec));
      KVF_RETURN_IF_ERROR(
          StartRole(absl::StrCat("decode-", i), rpc::Role::kDecode, settings, flags_.set_decode));
    }
    for (int i = 0; i < flags_.prefill_workers; ++i) {
      const std::string name = absl::StrCat("prefill-", i);
      std::vector<std::string> settings = WorkerSettings(name, router);
      if (!codebooks.empty()) settings.push_back(absl::StrCat("codebooks+=", codebooks));
      KVF_RETURN_IF_ERROR(StartRole(name, rpc::Role::kPrefill, settings, flags_.set_prefill));
    }
    return absl::OkStatus();
  }

  // Returns when a signal arrives (OK) or a process ends by itself (kAborted names it).
  absl::Status RunUntilSignal(int signal_fd) {
    while (true) {
      for (Started& started : processes_) {
        if (!started.process->Running()) {
          return absl::AbortedError(
              absl::StrCat(started.name, " has ended; its log is ", LogFile(started.name)));
        }
      }
      signalfd_siginfo info;
      if (read(signal_fd, &info, sizeof(info)) != sizeof(info)) continue;
      if (info.ssi_signo != SIGCHLD) return absl::OkStatus();
    }
  }

  // In reverse order of start: workers drain before the router goes.
  void Stop() {
    while (!processes_.empty()) {
      processes_.back().process->Terminate();
      processes_.back().process->Wait(kStopLimit);
      processes_.pop_back();
    }
  }

  const std::vector<Started>& processes() const { return processes_; }
  std::string Certs() const { return flags_.folder + "/certs"; }

 private:
  std::string LogFile(const std::string& name) const {
    return absl::StrCat(flags_.folder, "/", name, ".log");
  }

  static std::vector<std::string> WorkerSettings(const std::string& name,
                                                 const std::string& router) {
    return {absl::StrCat("worker.name=", name), absl::StrCat("worker.router_addresses+=", router),
            "worker.listen_address=127.0.0.1:0"};
  }

  // All roles serve under one name; the router reads its tokenizer from --model.
  void AddModel(rpc::Role role, std::vector<std::string>& settings) const {
    if (flags_.random_weights.empty() || role == rpc::Role::kRouter) {
      settings.push_back(absl::StrCat("model.path=", flags_.model));
      return;
    }
    v1::ModelSource model;
    model.set_path(flags_.model);
    rpc::CompleteModelPath(model).IgnoreError();  // --model is required
    settings.push_back(absl::StrCat("model.name=", model.name()));
    settings.push_back(absl::StrCat("model.path=", flags_.random_weights));
    settings.push_back("model.random_weights=true");
  }

  absl::Status StartRole(const std::string& name, rpc::Role role, std::vector<std::string> settings,
                         const std::vector<std::string>& extra) {
    v1::TlsConfig tls;
    rpc::SetCertificateFiles(Certs(), role, tls);
    AddModel(role, settings);
    if (!flags_.compute.empty() && role != rpc::Role::kRouter)
      settings.push_back(absl::StrCat("model.compute=", flags_.compute));
    settings.push_back(absl::StrCat("tls.ca_file=", tls.ca_file()));
    settings.push_back(absl::StrCat("tls.cert_file=", tls.cert_file()));
    settings.push_back(absl::StrCat("tls.key_file=", tls.key_file()));
    settings.insert(settings.end(), extra.begin(), extra.end());
    std::vector<std::string> command = {
        absl::StrCat(ProgramFolder(), "/", std::string(rpc::RoleName(role)))};
    for (const std::string& setting : settings) {
      command.push_back("--set");
      command.push_back(setting);
    }
    std::cerr << "starting " << name << " ..." << std::flush;
    auto process = ChildProcess::Start(command, LogFile(name));
    KVF_RETURN_IF_ERROR(process.status());
    KVF_ASSIGN_OR_RETURN(std::string address, (*process)->WaitForValue("address", kStartLimit));
    std::cerr << " listening on " << address << '\n';
    processes_.push_back({name, *std::move(process), std::move(address)});
    return absl::OkStatus();
  }

  const ServeFlags& flags_;
  std::vector<Started> processes_;
};

absl::Status Serve(const ServeFlags& flags) {
  std::error_code error;
  std::filesystem::create_directories(flags.folder, error);
  if (error)
    return absl::InvalidArgumentError(
        absl::StrCat("--folder '", flags.folder, "': ", error.message()));
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals, signal);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
  if (signal_fd < 0) return absl::ErrnoToStatus(errno, "signalfd");

  LocalCluster cluster(flags);
  absl::Status result = cluster.Start();
  if (result.ok()) {
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    std::cout << "ready address=" << cluster.processes().front().address
              << " certs=" << cluster.Certs() << " pids=";
    for (const Started& started : cluster.processes()) {
      std::cout << (&started == &cluster.processes().front() ? "" : ",") << started.name << ":"
                << started.process->pid();
    }
    std::cout << std::endl;
    std::cerr << "Ctrl-C stops all. In another terminal:\n  kvferry generate --address "
              << cluster.processes().front().address << " --certs " << cluster.Certs()
              << " --prompt \"Why is the sky blue?\"\n";
    result = cluster.RunUntilSignal(signal_fd);
    std::cerr << "stopping ...\n";
  }
  cluster.Stop();
  close(signal_fd);
  return result;
}

}  // namespace

void AddServe(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("serve", "Run router, prefill and decode on this machine until Ctrl-C");
  auto flags = std::make_shared<ServeFlags>();
  command->add_option("--model", flags->model, "a .gguf file or a Hugging Face directory")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("--listen", flags->listen, "host:port of the router; port 0 takes a free one")
      ->capture_default_str();
  command->add_option("--codec", flags->codec,
                      "of the decode pools, see `kvferry codecs`, or of a file: "
                      "kvtuner:PROFILE.json, cq-4c8b:codebooks=FILE [kivi-4-g64]");
  command->add_option("--compute", flags->compute, "fp32 or bf16 [fp32]")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command
      ->add_option("--random-weights", flags->random_weights,
                   "config.json of a model whose shape the workers take, with random weights, for "
                   "benchmarks; --model is the tokenizer, of as many tokens as vocab_size")
      ->check(CLI::ExistingFile);
  command->add_option("--folder", flags->folder, "for certificates and logs")
      ->capture_default_str();
  command->add_option("--prefill-workers", flags->prefill_workers)
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  command->add_option("--decode-workers", flags->decode_workers)
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  command->add_option("--set-router", flags->set_router,
                      "path=value of the router's config; repeatable");
  command->add_option("--set-prefill", flags->set_prefill,
                      "path=value of every prefill worker's config; repeatable");
  command->add_option("--set-decode", flags->set_decode,
                      "path=value of every decode worker's config; repeatable");
  command->footer(R"(Prints "ready address=... certs=... pids=..." on stdout when all three answer.
Examples:
  kvferry serve --model SmolLM2-135M-Instruct.Q4_1.gguf
  kvferry serve --model ./Qwen2.5-0.5B-Instruct --codec kivi-2-g64 --decode-workers 2 --set-decode pool_bytes=4294967296)");
  command->callback([flags] {
    if (const absl::Status done = Serve(*flags); !done.ok()) throw CLI::RuntimeError(Fail(done));
  });
}

}  // namespace kvferry::cli
