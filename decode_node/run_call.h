#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "decode_node/convert.h"
#include "decode_node/service.h"

namespace kvferry::decode {

// One Decode.Run call: waits for adoption, hands the sequence to the engine, turns its tokens into
// stream messages. A slow reader's events wait here, at most max_new_tokens + 2. Lives until gRPC's
// OnDone; data plane and engine may hold it longer and are then not heard. Thread: any; one mutex,
// under which the engine may be called, but never gRPC or the data plane.
class RunCall final : public grpc::ServerWriteReactor<v1::TokenEvent>,
                      public RunListener,
                      public SequenceObserver,
                      public std::enable_shared_from_this<RunCall> {
 public:
  explicit RunCall(const ServiceParts& parts) : parts_(parts) {}

  // Once, at the start. A demand that is not OK ends the call with its status.
  void Start(absl::StatusOr<RunDemand> demand);

  void OnAdopted(AdoptedSequence sequence) override;
  void OnFailed(const absl::Status& why) override;
  void OnToken(std::uint32_t position, std::int32_t id) override;
  void OnFinished(const absl::Status& status, bool stop_token) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { self_.reset(); }

 private:
  void GiveUp();
  void Push(std::optional<v1::TokenEvent> event, std::optional<grpc::Status> end);
  void Pump();

  const ServiceParts& parts_;
  std::shared_ptr<RunCall> self_;  // gRPC's share, given up in OnDone
  RunDemand demand_;               // written in Start, before anybody else knows of this call

  absl::Mutex mutex_;
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;  // the transfer is ours to release
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // the caller is gone
  std::deque<v1::TokenEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  v1::TokenEvent current_;  // the one that is being written
};

}  // namespace kvferry::decode
