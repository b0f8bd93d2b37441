#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/child_process.h"
#include "kvferry/v1/admin.pb.h"
#include "kvferry/v1/inference.grpc.pb.h"
#include "rpc/credentials.h"
#include "tests/integration/test_network.h"

namespace kvferry::testing {

// The demo model: what the environment's KVFERRY_DEMO_MODEL names, else what scripts/deps.sh
// installs.
std::string DemoModelPath();

struct ClusterOptions {
  int prefill_workers = 1;
  int decode_workers = 1;
  bool namespaces = false;  // each process on a host of its own
  std::string codec = "fp16";
  std::vector<std::string> set_router, set_prefill, set_decode;  // path=value
  // Instead of the demo model: a config.json, whose shape gets random weights.
  std::string random_weights;
  absl::Duration start_limit = absl::Seconds(60);  // of one process
};

// What a client saw of one request.
struct Answer {
  absl::Status status;
  std::vector<std::int32_t> ids;
  std::string text;
  v1::Started started;
  v1::Finished finished;
  bool contiguous = true;      // every token once, in order, by first_index
  absl::Duration longest_gap;  // between two events
};

// The real programs with the real model, in processes of their own. Everything dies with this
// object.
class Cluster {
 public:
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const ClusterOptions& options);
  ~Cluster();

  // Runs a request to its end (any thread). `on_event` sees each event first; it may cancel by
  // returning false.
  Answer Generate(const v1::GenerateRequest& request,
                  const std::function<bool(const v1::GenerateEvent&)>& on_event = {});
  absl::StatusOr<v1::GetStateResponse> RouterState();
  // Of a worker by name ("decode-0"), by its own Admin service.
  absl::StatusOr<v1::GetStateResponse> WorkerState(const std::string& name);
  // Waits until `done` holds for the router's state.
  absl::Status AwaitRouter(absl::Duration limit,
                           const std::function<bool(const v1::GetStateResponse&)>& done);
  // Waits until a worker of the role ("prefill", "decode") has such a transfer; its name.
  absl::StatusOr<std::string> AwaitTransfer(
      const std::string& role, const std::function<bool(const v1::TransferState&)>& is_such,
      absl::Duration limit);
  // Waits until no decode worker has a page that is not free, a landing slot in use or a transfer.
  absl::Status AwaitAllFree(absl::Duration limit);

  void Signal(const std::string& name, int signal);
  absl::Status Restart(const std::string& name);
  // SIGTERM, which lets it finish; killed when that takes longer than 10 s.
  void Stop(const std::string& name);
  // A worker's name begins with its role ("decode-2").
  struct Worker {
    std::string name;
    rpc::Role role;
    std::vector<std::string> settings;  // path=value
  };
  // Starts more workers, all at once, and waits until each listens. kAborted: one has ended;
  // kDeadlineExceeded: one was not ready within the options' limit, times how many they are.
  absl::Status Launch(const std::vector<Worker>& workers);
  TestNetwork* network() { return network_.get(); }
  const std::string& router_address() const { return router_address_; }
  std::string certs() const { return folder_ + "/certs"; }
  const std::string& folder() const { return folder_; }
  // The log of one process, for a failing test's message.
  std::string Log(const std::string& name) const;

 private:
  struct Process {
    std::vector<std::string> command;
    std::unique_ptr<cli::ChildProcess> child;
    std::string address;
  };
  explicit Cluster(ClusterOptions options) : options_(std::move(options)) {}
  std::vector<std::string> ModelSettings(rpc::Role role) const;
  absl::Status SetCommand(const Worker& worker);
  absl::Status BeginProcess(const std::string& name);  // by its command
  absl::Status AwaitAddress(const std::string& name, absl::Duration limit);

  ClusterOptions options_;
  std::string folder_;
  std::unique_ptr<TestNetwork> network_;
  std::map<std::string, Process> processes_;
  std::string router_address_;
  std::unique_ptr<rpc::Credentials> credentials_;
  std::shared_ptr<grpc::Channel> channel_;
};

// A greedy request for `max_tokens` tokens after `prompt`, as it is, end tokens ignored.
v1::GenerateRequest GreedyRequest(const std::string& prompt, int max_tokens);

}  // namespace kvferry::testing
