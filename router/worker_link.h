#pragma once

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvferry/v1/decode.grpc.pb.h"
#include "kvferry/v1/prefill.grpc.pb.h"
#include "router/loop.h"
#include "router/registry.h"
#include "rpc/credentials.h"

namespace kvferry::router {

// A call to a worker that is under way. Thread: the loop's.
class WorkerCall {
 public:
  virtual ~WorkerCall() = default;
  // Ends the call here at once, whatever the worker does; its handlers hear nothing more.
  virtual void Break() = 0;
};

// Counts calls until gRPC has let go of them, so that the loop that they post to can outlive them.
// Thread: any.
class CallCount {
 public:
  void Add();
  void Done();
  void WaitNone();

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The connection to one run of one worker: a worker that comes back gets another one. Handlers run
// on the loop, in the order of the stream, the end last. Thread: the loop's.
class WorkerLink {
 public:
  template <typename Event>
  struct StreamHandler {
    std::function<void(const Event&)> event;
    std::function<void(const absl::Status&)> end;
  };

  WorkerLink(const WorkerInfo& info, const rpc::Credentials& credentials, Loop& loop,
             CallCount& count);

  const WorkerInfo& info() const { return info_; }

  // Its answer comes even when the request has ended meanwhile: a grant must not be lost.
  std::shared_ptr<WorkerCall> Reserve(const v1::ReserveRequest& request,
                                      std::function<void(absl::StatusOr<v1::Grant>)> done);
  std::shared_ptr<WorkerCall> RunDecode(v1::RunRequest request, MonoTime deadline,
                                        StreamHandler<v1::TokenEvent> handler);
  std::shared_ptr<WorkerCall> RunPrefill(v1::PrefillRequest request, MonoTime deadline,
                                         StreamHandler<v1::PrefillEvent> handler);
  // Nobody waits for the answer: where it fails the grant's lease ends it.
  void Release(const v1::Grant& grant);

 private:
  const WorkerInfo info_;
  Loop& loop_;
  CallCount& count_;
  std::unique_ptr<v1::Decode::Stub> decode_;
  std::unique_ptr<v1::Prefill::Stub> prefill_;
};

}  // namespace kvferry::router
