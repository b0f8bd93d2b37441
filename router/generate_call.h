#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvferry/v1/inference.pb.h"
#include "router/engine.h"
#include "router/types.h"

namespace kvferry::router {

// One Inference.Generate call. While the client is slow, tokens join the last message that waits:
// what is held is bounded by the answer's own size. Lives until gRPC's OnDone; the engine may hold
// it longer and is then not heard. Thread: any.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public AnswerObserver,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // gRPC's from here on, until OnDone.
  static std::shared_ptr<GenerateCall> Open(Engine& engine, const std::string& model);

  // Once. The call ends with the status where there is no spec.
  void Start(absl::StatusOr<GenerateSpec> spec);

  void OnStart(const AnswerStart& start) override;
  void OnToken(AnswerToken token) override;
  void OnEnd(const AnswerEnd& end) override;
  void OnError(const absl::Status& status) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { self_.reset(); }

 private:
  GenerateCall(Engine& engine, std::string model) : engine_(engine), model_(std::move(model)) {}
  void Push(v1::GenerateEvent event);
  void End(const grpc::Status& status);
  // Starts the next operation when none runs.
  void Pump();

  Engine& engine_;
  const std::string model_;
  std::shared_ptr<GenerateCall> self_;  // gRPC's share, given up in OnDone
  grpc::ByteBuffer current_;            // the write under way

  absl::Mutex mutex_;
  std::string request_id_ ABSL_GUARDED_BY(mutex_);  // empty: the engine does not know of it
  std::deque<v1::GenerateEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvferry::router
