#include "rpc/status.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "common/status_macros.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "rpc/convert.h"

namespace kvferry::cli {
namespace {

struct StatusFlags {
  ConnectionFlags connection;
  OutputFormat output = OutputFormat::kTable;
  rpc::Role role = rpc::Role::kRouter;
  bool workers = false;
  std::string drain;
};

std::string RoleText(v1::WorkerRole role) {
  return role == v1::WORKER_ROLE_PREFILL  ? "prefill"
         : role == v1::WORKER_ROLE_DECODE ? "decode"
                                          : "unknown";
}

absl::StatusOr<v1::GetStateResponse> GetState(const ConnectionFlags& connection, rpc::Role role) {
  KVF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, connection.Connect(role));
  grpc::ClientContext context;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::milliseconds(static_cast<std::int64_t>(connection.timeout_s * 1000)));
  v1::GetStateResponse state;
  const grpc::Status status = v1::Admin::NewStub(channel)->GetState(&context, {}, &state);
  KVF_RETURN_IF_ERROR(rpc::FromGrpc(status));
  return state;
}

void PrintPool(const v1::PoolState& pool) {
  std::cout << '\n'
            << FormatTable(
                   {{"pool", "codec", "bytes", "free", "granted", "filled", "published",
                     "quarantined", "sequences", "landing"},
                    {"", pool.codec(), FormatBytes(static_cast<double>(pool.pool_bytes())),
                     absl::StrCat(pool.pages_free()), absl::StrCat(pool.pages_granted()),
                     absl::StrCat(pool.pages_filled()), absl::StrCat(pool.pages_published()),
                     absl::StrCat(pool.pages_quarantined()),
                     absl::StrCat(pool.sequences(), "/", pool.max_sequences()),
                     absl::StrCat(pool.landing_slots_free(), "/", pool.landing_slots_total(),
                                  " free")}});
}

void PrintState(const v1::GetStateResponse& state) {
  std::cout << state.role() << ' ' << state.name() << ", up "
            << FormatSeconds(rpc::ToSeconds(state.uptime())) << ", " << state.running_requests()
            << " running, " << state.queued_requests() << " queued"
            << (state.draining() ? ", draining" : "") << '\n';
  if (state.workers_size() > 0) {
    std::vector<std::vector<std::string>> rows = {
        {"worker", "role", "address", "running", "queued", "pages free", "last report", "codecs"}};
    for (const v1::WorkerState& worker : state.workers()) {
      rows.push_back(
          {worker.name() + (worker.draining() ? " (draining)" : ""), RoleText(worker.role()),
           worker.control_address(), absl::StrCat(worker.running_requests()),
           absl::StrCat(worker.queued_requests()),
           worker.total_pages() == 0 ? "-"
                                     : absl::StrCat(worker.free_pages(), "/", worker.total_pages()),
           FormatSeconds(rpc::ToSeconds(worker.last_report())) + " ago",
           absl::StrCat(absl::StrJoin(worker.codecs(), " "),
                        worker.no_prefill() ? " (no prefill worker makes it)" : "")});
    }
    std::cout << '\n' << FormatTable(rows);
  }
  if (state.has_pool()) PrintPool(state.pool());
  if (state.transfers_size() > 0) {
    std::vector<std::vector<std::string>> rows = {
        {"transfer", "attempt", "request", "state", "peer", "bytes", "age"}};
    for (const v1::TransferState& transfer : state.transfers()) {
      rows.push_back({absl::BytesToHexString(transfer.transfer_id()).substr(0, 8),
                      absl::StrCat(transfer.epoch()), transfer.request_id(), transfer.state(),
                      transfer.peer(),
                      absl::StrCat(FormatBytes(static_cast<double>(transfer.bytes_done())), " of ",
                                   FormatBytes(static_cast<double>(transfer.bytes_total()))),
                      FormatSeconds(rpc::ToSeconds(transfer.age()))});
    }
    std::cout << '\n' << FormatTable(rows);
  }
}

absl::Status PrintJson(const v1::GetStateResponse& state) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(state, &json, options);
  if (!status.ok()) return absl::InternalError("state does not print as JSON");
  std::cout << json << std::endl;
  return absl::OkStatus();
}

absl::Status DrainWorker(const StatusFlags& flags) {
  KVF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                       flags.connection.Connect(flags.role));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::DrainRequest request;
  request.set_worker(flags.drain);
  v1::DrainResponse response;
  return rpc::FromGrpc(v1::Admin::NewStub(channel)->Drain(&context, request, &response));
}

absl::Status ShowWorkers(const StatusFlags& flags, const v1::GetStateResponse& router) {
  for (const v1::WorkerState& worker : router.workers()) {
    ConnectionFlags connection = flags.connection;
    connection.address = worker.control_address();
    const auto state =
        GetState(connection, worker.role() == v1::WORKER_ROLE_DECODE ? rpc::Role::kDecode
                                                                     : rpc::Role::kPrefill);
    if (!state.ok()) {
      std::cerr << worker.name() << ": " << state.status().message() << '\n';
      continue;
    }
    if (flags.output == OutputFormat::kJson) {
      KVF_RETURN_IF_ERROR(PrintJson(*state));
    } else {
      std::cout << '\n';
      PrintState(*state);
    }
  }
  return absl::OkStatus();
}

absl::Status Show(const StatusFlags& flags) {
  if (!flags.drain.empty()) return DrainWorker(flags);
  KVF_ASSIGN_OR_RETURN(const v1::GetStateResponse state, GetState(flags.connection, flags.role));
  if (flags.output == OutputFormat::kJson) {
    KVF_RETURN_IF_ERROR(PrintJson(state));
  } else {
    PrintState(state);
  }
  return flags.workers ? ShowWorkers(flags, state) : absl::OkStatus();
}

}  // namespace

void AddStatus(CLI::App& app) {
  static const std::map<std::string, rpc::Role> kRoles = {{"router", rpc::Role::kRouter},
                                                          {"prefill", rpc::Role::kPrefill},
                                                          {"decode", rpc::Role::kDecode}};
  CLI::App* command = app.add_subcommand("status", "Show workers, pools and transfers");
  auto flags = std::make_shared<StatusFlags>();
  flags->connection.timeout_s = 5;
  flags->connection.AddTo(*command);
  AddOutputFlag(*command, flags->output);
  command->add_option("--role", flags->role, "what is at the address [router]")
      ->transform(CLI::CheckedTransformer(kRoles))
      ->type_name("router|prefill|decode");
  command->add_flag("--workers", flags->workers,
                    "ask each attached worker too: pools and transfers");
  command->add_option("--drain", flags->drain,
                      "drain this attached worker instead: it finishes what runs and leaves");
  command->footer(R"(Examples:
  kvferry status --workers
  kvferry status --role decode --address 10.0.0.7:7301 --output json
  kvferry status --drain decode-0)");
  command->callback([flags] {
    if (const absl::Status done = Show(*flags); !done.ok()) throw CLI::RuntimeError(Fail(done));
  });
}

}  // namespace kvferry::cli
