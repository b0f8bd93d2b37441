#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "kvferry/v1/decode.grpc.pb.h"
#include "kvferry/v1/prefill.grpc.pb.h"
#include "kvferry/v1/registry.grpc.pb.h"

namespace kvferry::fakes {

// The one true token of a position: what every worker that is not told to lie generates.
std::int32_t TokenAt(std::uint32_t position);

// What every hand-off has moved at the first token, and in all.
inline constexpr std::uint64_t kFirstTokenBytes = 1024;
inline constexpr std::uint64_t kPayloadBytes = 4096;

// Stands for the data plane: which transfers prefill has committed.
class FakeDataPlane {
 public:
  void Commit(const std::string& transfer_id, std::int32_t first_token);
  std::optional<std::int32_t> FirstToken(const std::string& transfer_id);

 private:
  std::mutex mutex_;
  std::map<std::string, std::int32_t> committed_;
};

struct FakeWorkerOptions {
  std::string name;
  std::string router_address;
  v1::Fingerprint fingerprint;
  std::vector<std::string> codecs = {"fp16"};
  std::uint32_t max_context_tokens = 0;
  FakeDataPlane* data_plane = nullptr;
};

// What both kinds share: a gRPC server and a registry stream. Thread: any.
class FakeWorker {
 public:
  virtual ~FakeWorker();

  // As SIGSTOP does: reports stop, calls hang, connections stay. Then as SIGCONT.
  void Freeze();
  void Thaw();
  // As SIGKILL does, for a test's purposes: connections end, nothing is said.
  void Crash();
  const std::string& address() const { return address_; }
  std::uint64_t incarnation() const { return incarnation_; }

  // What the router told it.
  bool drain_told() const { return drain_told_; }
  std::vector<v1::Peer> peers() const;
  std::vector<std::string> releases_told() const;  // transfer ids
  absl::Status refused() const;                    // how its last registry stream ended
  void SetLoad(const v1::Load& load);

 protected:
  FakeWorker(FakeWorkerOptions options, v1::WorkerRole role);
  void Start(grpc::Service& service);
  // Waits until `done` or the caller is gone (false). Frozen: waits for Thaw first.
  bool Await(const grpc::ServerContext& context, const std::function<bool()>& done);

  const FakeWorkerOptions options_;
  std::atomic<bool> crashed_ = false;

 private:
  void Attach(v1::Registry::Stub& stub, const v1::Join& join);
  void Obey(const v1::RouterCommand& command);

  const v1::WorkerRole role_;
  const std::uint64_t incarnation_;
  std::string address_;
  std::atomic<bool> frozen_ = false;
  std::atomic<bool> drain_told_ = false;
  mutable std::mutex mutex_;
  std::vector<v1::Peer> peers_;
  std::vector<std::string> releases_;
  absl::Status refused_;
  v1::Load load_;
  std::unique_ptr<grpc::Server> server_;
  std::thread registry_;
};

class FakeDecode final : public FakeWorker, public v1::Decode::Service {
 public:
  explicit FakeDecode(FakeWorkerOptions options);
  ~FakeDecode() override { Crash(); }

  // -- What it does. Set at any time.
  std::function<grpc::Status()> on_reserve;  // default OK
  std::atomic<int> token_limit = 1 << 30;    // of each run: hangs there
  std::atomic<int> break_after = -1;         // tokens of a run, then `break_status`
  grpc::Status break_status{grpc::StatusCode::UNAVAILABLE, "broken by the test"};
  std::atomic<bool> repeat_tokens = false;  // sends each twice
  std::atomic<int> skip_token = -1;         // index in the run that is left out, once

  // -- What it saw.
  int reservations() const { return reservations_; }
  int runs() const { return runs_; }
  // Grants that are neither released nor run to their end.
  std::size_t held() const;
  std::vector<v1::RunRequest> run_requests() const;

  grpc::Status Reserve(grpc::ServerContext* context, const v1::ReserveRequest* request,
                       v1::Grant* grant) override;
  grpc::Status Run(grpc::ServerContext* context, const v1::RunRequest* request,
                   grpc::ServerWriter<v1::TokenEvent>* writer) override;
  grpc::Status Release(grpc::ServerContext* context, const v1::ReleaseRequest* request,
                       v1::ReleaseResponse* response) override;

 private:
  grpc::Status Generate(grpc::ServerContext& context, const v1::RunRequest& request,
                        grpc::ServerWriter<v1::TokenEvent>& writer);

  std::atomic<int> reservations_ = 0;
  std::atomic<int> runs_ = 0;
  mutable std::mutex mutex_;
  std::set<std::string> held_;
  std::vector<v1::RunRequest> run_requests_;
};

class FakePrefill final : public FakeWorker, public v1::Prefill::Service {
 public:
  explicit FakePrefill(FakeWorkerOptions options);
  ~FakePrefill() override { Crash(); }

  std::atomic<bool> hang_before_first_token = false;
  std::atomic<bool> hang_before_commit = false;
  std::function<grpc::Status()> on_run;  // default OK

  int runs() const { return runs_; }
  int running() const { return running_; }

  grpc::Status Run(grpc::ServerContext* context, const v1::PrefillRequest* request,
                   grpc::ServerWriter<v1::PrefillEvent>* writer) override;

 private:
  grpc::Status Prefill(grpc::ServerContext& context, const v1::PrefillRequest& request,
                       grpc::ServerWriter<v1::PrefillEvent>& writer);

  std::atomic<int> runs_ = 0;
  std::atomic<int> running_ = 0;
};

}  // namespace kvferry::fakes
