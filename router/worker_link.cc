#include "router/worker_link.h"

#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <utility>

#include "absl/time/time.h"
#include "rpc/status.h"

namespace kvferry::router {
namespace {

// Of calls that a living worker answers at once.
constexpr absl::Duration kUnaryLimit = absl::Seconds(5);

void SetDeadline(grpc::ClientContext& context, absl::Duration left) {
  if (left == absl::InfiniteDuration()) return;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(left));
}

// A server stream whose messages go to the loop. gRPC's share of it ends in OnDone.
template <typename Request, typename Event>
class StreamCall final : public WorkerCall,
                         public grpc::ClientReadReactor<Event>,
                         public std::enable_shared_from_this<StreamCall<Request, Event>> {
 public:
  StreamCall(Request request, WorkerLink::StreamHandler<Event> handler, Loop& loop,
             CallCount& count)
      : request_(std::move(request)), handler_(std::move(handler)), loop_(loop), count_(count) {}

  template <typename Open>
  void Start(absl::Duration left, const Open& open) {
    self_ = this->shared_from_this();
    count_.Add();
    SetDeadline(context_, left);
    open(&context_, &request_, this);
    this->StartRead(&event_);
    this->StartCall();
  }

  void Break() override {
    broken_ = true;
    context_.TryCancel();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    loop_.Post([call = self_, event = std::move(event_)] {
      if (!call->broken_) call->handler_.event(event);
    });
    event_ = Event();
    this->StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    loop_.Post([call = self_, status = rpc::FromGrpc(status)] {
      if (!call->broken_) call->handler_.end(status);
    });
    CallCount& count = count_;
    self_.reset();
    count.Done();
  }

 private:
  const Request request_;
  const WorkerLink::StreamHandler<Event> handler_;
  Loop& loop_;
  CallCount& count_;
  grpc::ClientContext context_;
  Event event_;
  bool broken_ = false;  // the loop's own
  std::shared_ptr<StreamCall> self_;
};

// One question, one answer. Shared by gRPC's callback and whoever may break it.
template <typename Request, typename Response>
struct UnaryCall final : WorkerCall {
  void Break() override {
    broken = true;
    context.TryCancel();
  }
  grpc::ClientContext context;
  Request request;
  Response response;
  bool broken = false;  // the loop's own
};

}  // namespace

void CallCount::Add() {
  const absl::MutexLock lock(&mutex_);
  ++count_;
}

void CallCount::Done() {
  const absl::MutexLock lock(&mutex_);
  --count_;
}

void CallCount::WaitNone() {
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* count) { return *count == 0; }, &count_));
}

WorkerLink::WorkerLink(const WorkerInfo& info, const rpc::Credentials& credentials, Loop& loop,
                       CallCount& count)
    : info_(info), loop_(loop), count_(count) {
  const bool is_decode = info.kind == WorkerKind::kDecode;
  const std::shared_ptr<grpc::Channel> channel = credentials.Connect(
      info.control_address, is_decode ? rpc::Role::kDecode : rpc::Role::kPrefill);
  if (is_decode) {
    decode_ = v1::Decode::NewStub(channel);
  } else {
    prefill_ = v1::Prefill::NewStub(channel);
  }
}

std::shared_ptr<WorkerCall> WorkerLink::Reserve(
    const v1::ReserveRequest& request, std::function<void(absl::StatusOr<v1::Grant>)> done) {
  auto call = std::make_shared<UnaryCall<v1::ReserveRequest, v1::Grant>>();
  call->request = request;
  SetDeadline(call->context, kUnaryLimit);
  count_.Add();
  decode_->async()->Reserve(
      &call->context, &call->request, &call->response,
      [call, done = std::move(done), loop = &loop_, count = &count_](const grpc::Status& status) {
        loop->Post([call, done, status = rpc::FromGrpc(status)] {
          if (call->broken) return;
          if (status.ok()) {
            done(std::move(call->response));
          } else {
            done(status);
          }
        });
        count->Done();
      });
  return call;
}

void WorkerLink::Release(const v1::Grant& grant) {
  auto call = std::make_shared<UnaryCall<v1::ReleaseRequest, v1::ReleaseResponse>>();
  call->request.set_transfer_id(grant.transfer_id());
  call->request.set_epoch(grant.epoch());
  SetDeadline(call->context, kUnaryLimit);
  count_.Add();
  decode_->async()->Release(&call->context, &call->request, &call->response,
                            [call, count = &count_](const grpc::Status&) { count->Done(); });
}

std::shared_ptr<WorkerCall> WorkerLink::RunDecode(v1::RunRequest request, MonoTime deadline,
                                                  StreamHandler<v1::TokenEvent> handler) {
  auto call = std::make_shared<StreamCall<v1::RunRequest, v1::TokenEvent>>(
      std::move(request), std::move(handler), loop_, count_);
  call->Start(deadline - loop_.Now(), [this](auto* context, const auto* request, auto* reactor) {
    decode_->async()->Run(context, request, reactor);
  });
  return call;
}

std::shared_ptr<WorkerCall> WorkerLink::RunPrefill(v1::PrefillRequest request, MonoTime deadline,
                                                   StreamHandler<v1::PrefillEvent> handler) {
  auto call = std::make_shared<StreamCall<v1::PrefillRequest, v1::PrefillEvent>>(
      std::move(request), std::move(handler), loop_, count_);
  call->Start(deadline - loop_.Now(), [this](auto* context, const auto* request, auto* reactor) {
    prefill_->async()->Run(context, request, reactor);
  });
  return call;
}

}  // namespace kvferry::router
