#include "router/generate_call.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <utility>

#include "router/convert.h"
#include "rpc/status.h"

namespace kvferry::router {

std::shared_ptr<GenerateCall> GenerateCall::Open(Engine& engine, const std::string& model) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(engine, model));
  call->self_ = call;
  return call;
}

void GenerateCall::Start(absl::StatusOr<GenerateSpec> spec) {
  if (!spec.ok()) {
    OnError(spec.status());
    return;
  }
  const absl::MutexLock lock(&mutex_);
  if (end_.has_value()) return;  // the client has not waited
  request_id_ = spec->request_id;
  // Under the lock: a cancel comes to the engine after the request.
  engine_.Submit(*std::move(spec), shared_from_this());
}

void GenerateCall::OnStart(const AnswerStart& start) {
  v1::GenerateEvent event;
  v1::Started& started = *event.mutable_started();
  {
    const absl::MutexLock lock(&mutex_);
    started.set_request_id(request_id_);
  }
  started.set_model(model_);
  started.set_codec(start.codec);
  started.set_prompt_tokens(start.prompt_tokens);
  started.set_seed(start.seed);
  Push(std::move(event));
}

void GenerateCall::OnToken(AnswerToken token) {
  {
    const absl::MutexLock lock(&mutex_);
    if (!events_.empty() && events_.back().has_tokens()) {
      v1::Tokens& waiting = *events_.back().mutable_tokens();
      waiting.add_ids(token.id);
      waiting.mutable_text()->append(token.text);
      return;  // a write is under way
    }
  }
  v1::GenerateEvent event;
  event.mutable_tokens()->add_ids(token.id);
  event.mutable_tokens()->set_text(std::move(token.text));
  event.mutable_tokens()->set_first_index(token.index);
  Push(std::move(event));
}

void GenerateCall::OnEnd(const AnswerEnd& end) {
  if (!end.text.empty()) {
    v1::GenerateEvent rest;
    rest.mutable_tokens()->set_text(end.text);
    rest.mutable_tokens()->set_first_index(end.completion_tokens);
    Push(std::move(rest));
  }
  v1::GenerateEvent event;
  FillEnd(end, *event.mutable_finished());
  Push(std::move(event));
  End(grpc::Status::OK);
}

void GenerateCall::OnError(const absl::Status& status) { End(rpc::ToGrpc(status)); }

void GenerateCall::OnWriteDone(bool ok) {
  {
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) events_.clear();
  }
  if (!ok) OnCancel();
  Pump();
}

void GenerateCall::OnCancel() {
  {
    const absl::MutexLock lock(&mutex_);
    if (!request_id_.empty()) engine_.Abandon(request_id_, this);
  }
  End(grpc::Status(grpc::StatusCode::CANCELLED, "the client has gone"));
}

void GenerateCall::Push(v1::GenerateEvent event) {
  {
    const absl::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    events_.push_back(std::move(event));
  }
  Pump();
}

void GenerateCall::End(const grpc::Status& status) {
  {
    const absl::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    end_ = status;
  }
  Pump();
}

void GenerateCall::Pump() {
  std::optional<grpc::Status> finish;
  {
    const absl::MutexLock lock(&mutex_);
    if (writing_ || finished_) return;
    if (!events_.empty()) {
      bool own_buffer = false;
      current_.Clear();
      grpc::SerializationTraits<v1::GenerateEvent>::Serialize(events_.front(), &current_,
                                                              &own_buffer);
      events_.pop_front();
      writing_ = true;
    } else if (end_.has_value()) {
      finished_ = true;
      finish = *end_;
    } else {
      return;
    }
  }
  if (finish.has_value()) {
    Finish(*finish);  // may end in OnDone at once: nothing after it
  } else {
    StartWrite(&current_);
  }
}

}  // namespace kvferry::router
