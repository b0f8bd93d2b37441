#include "router/service.h"

#include <memory>
#include <utility>

#include "common/status_macros.h"
#include "router/convert.h"
#include "router/generate_call.h"
#include "router/routing.h"
#include "router/wire_text.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/status.h"

namespace kvferry::router {
namespace {

absl::Status CheckClient(const grpc::CallbackServerContext& context) {
  return rpc::CheckCaller(context, {rpc::Role::kClient, rpc::Role::kRouter});
}

template <typename Message>
absl::StatusOr<Message> Parse(const grpc::ByteBuffer& bytes) {
  Message message;
  grpc::ByteBuffer copy(bytes);  // shares the slices; parsing empties it
  if (grpc::SerializationTraits<Message>::Deserialize(&copy, &message).ok()) return message;
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (grpc::ByteBuffer(bytes).Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices)
      flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return ExplainUnparsable(*Message::descriptor(), flat);
}

template <typename Message>
void Serialize(const Message& message, grpc::ByteBuffer& bytes) {
  bool own_buffer = false;
  grpc::SerializationTraits<Message>::Serialize(message, &bytes, &own_buffer);
}

// What is left of the client's patience.
MonoTime DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteDuration();
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
      deadline - std::chrono::system_clock::now());
  // What gRPC gives for "none" is centuries away.
  if (left > std::chrono::hours(24 * 365)) return absl::InfiniteDuration();
  return clock.Now() + absl::FromChrono(left);
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const std::shared_ptr<GenerateCall> call = GenerateCall::Open(engine_, model_.name);
  GenerateCall* reactor = call.get();
  if (const absl::Status status = CheckClient(*context); !status.ok()) {
    call->Start(status);
    return reactor;
  }
  intake_loop_.Post([this, call, bytes = *request, deadline = DeadlineOf(*context, clock_)] {
    const auto take = [&]() -> absl::StatusOr<GenerateSpec> {
      KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest message, Parse<v1::GenerateRequest>(bytes));
      KVF_ASSIGN_OR_RETURN(GenerateSpec spec, intake_.Generate(message));
      spec.deadline = deadline;
      return spec;
    };
    call->Start(take());
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::CountTokens(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const absl::Status status = CheckClient(*context); !status.ok()) {
    reactor->Finish(rpc::ToGrpc(status));
    return reactor;
  }
  intake_loop_.Post([this, reactor, response, bytes = *request] {
    const auto count = [&]() -> absl::StatusOr<std::vector<std::int32_t>> {
      KVF_ASSIGN_OR_RETURN(const v1::CountTokensRequest message,
                           Parse<v1::CountTokensRequest>(bytes));
      return intake_.Count(message);
    };
    const absl::StatusOr<std::vector<std::int32_t>> ids = count();
    if (ids.ok()) {
      v1::CountTokensResponse message;
      message.set_tokens(static_cast<std::uint32_t>(ids->size()));
      message.mutable_ids()->Add(ids->begin(), ids->end());
      Serialize(message, *response);
    }
    reactor->Finish(rpc::ToGrpc(ids.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Cancel(grpc::CallbackServerContext* context,
                                                   const v1::CancelRequest* request,
                                                   v1::CancelResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = CheckClient(*context);
  if (status.ok() && request->request_id().empty())
    status = absl::InvalidArgumentError("request_id: empty; Started tells it");
  if (status.ok()) engine_.Cancel(request->request_id());
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest*,
                                                         v1::GetModelInfoResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status = CheckClient(*context);
  if (status.ok()) {
    response->set_model(model_.name);
    response->set_max_context_tokens(intake_.ContextTokens());
    response->set_vocabulary(model_.config.vocabulary);
    for (const std::string& codec : offer_.Get().attached_codecs) response->add_codecs(codec);
    response->set_layers(model_.config.layers);
    response->set_kv_heads(model_.config.kv_heads);
    response->set_head_dim(model_.config.head_dim);
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request, v1::DrainResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = CheckClient(*context);
  if (status.ok() && request->worker().empty()) {
    drain_();
  } else if (status.ok()) {
    loop_.Post([this, reactor, worker = request->worker()] {
      reactor->Finish(rpc::ToGrpc(registry_service_.Drain(worker)));
    });
    return reactor;
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::GetState(grpc::CallbackServerContext* context,
                                                 const v1::GetStateRequest*,
                                                 v1::GetStateResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const absl::Status status = CheckClient(*context); !status.ok()) {
    reactor->Finish(rpc::ToGrpc(status));
    return reactor;
  }
  loop_.Post([this, reactor, response] {
    FillState(*response);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

void AdminService::FillState(v1::GetStateResponse& response) const {
  const MonoTime now = loop_.Now();
  response = identity_;
  *response.mutable_uptime() = rpc::ToProto(now - start_);
  response.set_draining(engine_.draining());
  if (const v1::Fingerprint* fingerprint = registry_service_.fingerprint())
    *response.mutable_fingerprint() = *fingerprint;
  for (const auto& [attachment, worker] : registry_.workers()) {
    v1::WorkerState& message = *response.add_workers();
    FillWorker(worker, now, message);
    message.set_no_prefill(worker.info.kind == WorkerKind::kDecode &&
                           !HasPrefill(registry_, worker));
  }
  for (const RunningRequest& request : engine_.Requests())
    FillTransfer(request, *response.add_transfers());
  response.set_queued_requests(static_cast<std::uint32_t>(engine_.queued()));
  response.set_running_requests(static_cast<std::uint32_t>(engine_.running()));
  for (const auto& [name, value] : metrics_.CounterValues())
    (*response.mutable_counters())[name] = value;
}

}  // namespace kvferry::router
