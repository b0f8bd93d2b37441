#include "prefill_node/convert.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "rpc/convert.h"

namespace kvferry::prefill {
namespace {

absl::Status Invalid(const absl::AlphaNum& field, const absl::AlphaNum& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status CheckTokens(const v1::PrefillRequest& request, const PromptLimits& limits) {
  if (request.tokens().empty()) return Invalid("tokens", "empty; at least 1 token is needed");
  if (request.tokens_size() > limits.max_context_tokens) {
    return Invalid("tokens", absl::StrCat(request.tokens_size(), " tokens; the context holds ",
                                          limits.max_context_tokens));
  }
  for (int i = 0; i < request.tokens_size(); ++i) {
    if (request.tokens(i) < 0 || request.tokens(i) >= limits.vocabulary) {
      return Invalid(absl::StrCat("tokens[", i, "]"),
                     absl::StrCat(request.tokens(i), " is outside the vocabulary [0, ",
                                  limits.vocabulary, ")"));
    }
  }
  if (request.penalty_from() > static_cast<std::uint32_t>(request.tokens_size())) {
    return Invalid("penalty_from", absl::StrCat(request.penalty_from(), " is beyond the ",
                                                request.tokens_size(), " tokens"));
  }
  return absl::OkStatus();
}

absl::StatusOr<model::SamplingParams> ToSampling(const v1::SamplingParams& message) {
  if (!message.has_seed()) return Invalid("sampling.seed", "missing; the router chooses one");
  model::SamplingParams params;
  if (message.has_temperature()) params.temperature = message.temperature();
  if (message.has_top_k()) params.top_k = message.top_k();
  if (message.has_top_p()) params.top_p = message.top_p();
  if (message.has_min_p()) params.min_p = message.min_p();
  if (message.has_repetition_penalty()) params.repetition_penalty = message.repetition_penalty();
  params.seed = message.seed();
  KVF_RETURN_IF_ERROR(params.Validate());
  return params;
}

absl::StatusOr<codec::Codec> ToCodec(const v1::Grant& grant, const codec::CodebookSet& codebooks) {
  absl::StatusOr<codec::Codec> codec = codec::FindCodec(grant.codec());
  if (!codec.ok()) return Invalid("grant.codec", codec.status().message());
  if (codec->Hash() != grant.codec_hash()) {
    return absl::FailedPreconditionError(
        absl::StrCat("grant.codec_hash: \"", grant.codec(), "\" is ", absl::Hex(codec->Hash()),
                     " here and ", absl::Hex(grant.codec_hash()), " on decode worker ",
                     grant.decode_name(), "; run the same version on both"));
  }
  if (const absl::Status status = codec->Complete(codebooks); !status.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("grant.codec: ", status.message(), "; name the file that decode worker ",
                     grant.decode_name(), " has in this worker's setting `codebooks`"));
  }
  return codec;
}

absl::Status CheckGrant(const v1::Grant& grant) {
  if (grant.epoch() == 0) return Invalid("grant.epoch", "0; attempts count from 1");
  if (grant.decode_incarnation() == 0) return Invalid("grant.decode_incarnation", "missing");
  if (grant.decode_control_address().empty()) {
    return Invalid("grant.decode_control_address", "missing");
  }
  if (grant.credits() == 0) return Invalid("grant.credits", "0; at least 1 is needed");
  if (grant.slot_bytes() == 0) return Invalid("grant.slot_bytes", "0");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobRequest> ToJobRequest(const v1::PrefillRequest& request,
                                        const PromptLimits& limits) {
  if (!request.has_grant()) return Invalid("grant", "missing; Decode.Reserve gives one");
  const v1::Grant& grant = request.grant();
  KVF_RETURN_IF_ERROR(CheckGrant(grant));
  KVF_RETURN_IF_ERROR(CheckTokens(request, limits));
  JobRequest job;
  KVF_ASSIGN_OR_RETURN(job.transfer_id,
                       rpc::ToTransferId("grant.transfer_id", grant.transfer_id()));
  KVF_ASSIGN_OR_RETURN(job.codec, ToCodec(grant, limits.codebooks));
  KVF_ASSIGN_OR_RETURN(job.sampling, ToSampling(request.sampling()));
  job.request_id = request.request_id();
  job.epoch = Epoch{grant.epoch()};
  job.decode = Incarnation{grant.decode_incarnation()};
  job.credits = grant.credits();
  job.slot_bytes = grant.slot_bytes();
  if (grant.has_lease()) {
    KVF_ASSIGN_OR_RETURN(job.lease, rpc::ToDuration("grant.lease", grant.lease()));
  }
  job.tokens.assign(request.tokens().begin(), request.tokens().end());
  return job;
}

void FillStats(const HandoffSummary& summary, v1::HandoffStats& stats) {
  stats.set_prompt_tokens(summary.prompt_tokens);
  stats.set_payload_bytes(summary.payload_bytes);
  stats.set_header_bytes(summary.header_bytes);
  stats.set_raw16_bytes(summary.raw16_bytes);
  stats.set_chunks(summary.chunks);
  stats.set_resent_chunks(summary.resent_chunks);
  stats.set_transport(summary.transport);
  *stats.mutable_prefill_time() = rpc::ToProto(summary.prefill_time);
  if (summary.adopted) *stats.mutable_exposed_time() = rpc::ToProto(summary.exposed_time);
  stats.set_adopted(summary.adopted);
}

void FillLoad(const EngineLoad& load, v1::Load& message) {
  message.set_queued_requests(load.queued_requests);
  message.set_running_requests(load.running_requests);
  message.set_queued_tokens(load.queued_tokens);
  message.set_draining(load.draining);
  message.set_engine_steps(load.steps);
  *message.mutable_engine_stall() = rpc::ToProto(load.stall);
}

void FillTransfer(const TransferSnapshot& snapshot, const std::string& request_id,
                  v1::TransferState& message) {
  message.set_transfer_id(snapshot.id.ToBytes());
  message.set_epoch(static_cast<std::uint32_t>(snapshot.epoch));
  message.set_request_id(request_id);
  message.set_state(std::string(snapshot.state));
  message.set_peer(snapshot.peer);
  message.set_bytes_done(snapshot.bytes_done);
  message.set_bytes_total(snapshot.bytes_total);
  *message.mutable_age() = rpc::ToProto(snapshot.age);
}

}  // namespace kvferry::prefill
