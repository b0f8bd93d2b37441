#include "router/convert.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "rpc/convert.h"

namespace kvferry::router {
namespace {

void FillSampling(const model::SamplingParams& params, v1::SamplingParams& message) {
  message.set_temperature(params.temperature);
  message.set_top_k(params.top_k);
  message.set_top_p(params.top_p);
  message.set_min_p(params.min_p);
  message.set_repetition_penalty(params.repetition_penalty);
  message.set_seed(params.seed);
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

absl::StatusOr<WorkerInfo> ToWorkerInfo(const v1::Join& join) {
  WorkerInfo info;
  switch (join.role()) {
    case v1::WORKER_ROLE_PREFILL:
      info.kind = WorkerKind::kPrefill;
      break;
    case v1::WORKER_ROLE_DECODE:
      info.kind = WorkerKind::kDecode;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("join.role: ", static_cast<int>(join.role()),
                                                     "; prefill or decode is "
                                                     "needed"));
  }
  info.name = join.name();
  info.incarnation = Incarnation{join.incarnation()};
  info.control_address = join.control_address();
  info.codecs.assign(join.codecs().begin(), join.codecs().end());
  info.max_context_tokens = join.max_context_tokens();
  return info;
}

absl::StatusOr<WorkerLoad> ToWorkerLoad(const v1::Load& load) {
  WorkerLoad result{.queued_requests = load.queued_requests(),
                    .running_requests = load.running_requests(),
                    .queued_tokens = load.queued_tokens(),
                    .free_pages = load.free_pages(),
                    .total_pages = load.total_pages(),
                    .draining = load.draining()};
  KVF_ASSIGN_OR_RETURN(result.engine_stall,
                       rpc::ToDuration("load.engine_stall", load.engine_stall()));
  return result;
}

v1::RunRequest MakeRunRequest(const GenerateSpec& spec, const v1::Grant& grant,
                              const std::vector<std::int32_t>& tokens,
                              std::uint32_t max_new_tokens) {
  v1::RunRequest request;
  request.set_transfer_id(grant.transfer_id());
  request.set_epoch(grant.epoch());
  request.set_request_id(spec.request_id);
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  FillSampling(spec.sampling, *request.mutable_sampling());
  request.set_max_new_tokens(max_new_tokens);
  request.mutable_stop_tokens()->Add(spec.stop_tokens.begin(), spec.stop_tokens.end());
  request.set_penalty_from(static_cast<std::uint32_t>(spec.prompt.size()));
  return request;
}

v1::PrefillRequest MakePrefillRequest(const GenerateSpec& spec, const v1::Grant& grant,
                                      const std::vector<std::int32_t>& tokens) {
  v1::PrefillRequest request;
  request.set_request_id(spec.request_id);
  *request.mutable_grant() = grant;
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  FillSampling(spec.sampling, *request.mutable_sampling());
  request.set_penalty_from(static_cast<std::uint32_t>(spec.prompt.size()));
  return request;
}

void FillHandoff(const v1::HandoffStats& message, Handoff& handoff) {
  // Only prefill knows the times, and either side may report last.
  if (message.has_prefill_time()) {
    handoff.prefill_time =
        rpc::ToDuration("prefill_time", message.prefill_time()).value_or(absl::ZeroDuration());
  }
  if (message.has_exposed_time()) {
    handoff.exposed_time =
        rpc::ToDuration("exposed_time", message.exposed_time()).value_or(absl::ZeroDuration());
  }
  if (handoff.adopted && !message.adopted()) return;  // how far it was at the first token: old news
  handoff.adopted = message.adopted();
  handoff.prompt_tokens = message.prompt_tokens();
  handoff.payload_bytes = message.payload_bytes();
  handoff.header_bytes = message.header_bytes();
  handoff.raw16_bytes = message.raw16_bytes();
  handoff.chunks = message.chunks();
  handoff.resent_chunks = message.resent_chunks();
  handoff.transport = message.transport();
}

void FillEnd(const AnswerEnd& end, v1::Finished& message) {
  message.set_reason(ToProto(end.reason));
  message.set_prompt_tokens(end.prompt_tokens);
  message.set_completion_tokens(end.completion_tokens);
  *message.mutable_time_to_first_token() = rpc::ToProto(end.time_to_first_token);
  *message.mutable_time_per_token() = rpc::ToProto(end.time_per_token);
  v1::HandoffStats& handoff = *message.mutable_handoff();
  handoff.set_prompt_tokens(end.handoff.prompt_tokens);
  handoff.set_payload_bytes(end.handoff.payload_bytes);
  handoff.set_header_bytes(end.handoff.header_bytes);
  handoff.set_raw16_bytes(end.handoff.raw16_bytes);
  handoff.set_chunks(end.handoff.chunks);
  handoff.set_resent_chunks(end.handoff.resent_chunks);
  handoff.set_transport(end.handoff.transport);
  *handoff.mutable_prefill_time() = rpc::ToProto(end.handoff.prefill_time);
  handoff.set_adopted(end.handoff.adopted);
  if (end.handoff.adopted) {
    *handoff.mutable_exposed_time() = rpc::ToProto(end.handoff.exposed_time);
  }
  message.set_attempts(end.attempts);
  message.set_prefill_worker(end.prefill_worker);
  message.set_decode_worker(end.decode_worker);
}

void FillWorker(const Worker& worker, MonoTime now, v1::WorkerState& message) {
  message.set_name(worker.info.name);
  message.set_role(worker.info.kind == WorkerKind::kPrefill ? v1::WORKER_ROLE_PREFILL
                                                            : v1::WORKER_ROLE_DECODE);
  message.set_control_address(worker.info.control_address);
  message.set_incarnation(static_cast<std::uint64_t>(worker.info.incarnation));
  message.set_draining(worker.draining());
  message.set_queued_requests(worker.load.queued_requests);
  message.set_running_requests(worker.load.running_requests);
  message.set_free_pages(worker.load.free_pages);
  message.set_total_pages(worker.load.total_pages);
  *message.mutable_last_report() = rpc::ToProto(now - worker.last_report);
  for (const std::string& codec : worker.info.codecs) message.add_codecs(codec);
}

void FillTransfer(const RunningRequest& request, v1::TransferState& message) {
  message.set_transfer_id(request.transfer_id);
  message.set_epoch(request.epoch);
  message.set_request_id(request.request_id);
  message.set_state(request.state);
  message.set_peer(request.workers);
  *message.mutable_age() = rpc::ToProto(request.age);
}

}  // namespace kvferry::router
