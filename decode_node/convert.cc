#include "decode_node/convert.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "rpc/convert.h"
#include "rpc/fingerprint.h"

namespace kvferry::decode {
namespace {

constexpr std::size_t kMostStopTokens = 1024;

absl::Status Invalid(const absl::AlphaNum& field, const absl::AlphaNum& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status CheckCodec(const std::string& name, const codec::Codec& served) {
  if (name.empty()) return absl::OkStatus();
  const absl::StatusOr<codec::Codec> asked = codec::FindCodec(name);
  if (asked.ok() && asked->Hash() == served.Hash()) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("codec: \"", name, "\" is not served; this pool holds \"", served.name, "\"",
                   asked.ok() ? "" : absl::StrCat(" (", asked.status().message(), ")")));
}

absl::Status CheckTokens(const v1::RunRequest& request, int vocabulary) {
  if (request.tokens().empty()) return Invalid("tokens", "empty; the prompt is needed");
  const auto check = [&](const char* field, const auto& tokens) {
    for (int i = 0; i < tokens.size(); ++i) {
      if (tokens.Get(i) >= 0 && tokens.Get(i) < vocabulary) continue;
      return Invalid(
          absl::StrCat(field, "[", i, "]"),
          absl::StrCat(tokens.Get(i), " is outside the vocabulary [0, ", vocabulary, ")"));
    }
    return absl::OkStatus();
  };
  KVF_RETURN_IF_ERROR(check("tokens", request.tokens()));
  KVF_RETURN_IF_ERROR(check("stop_tokens", request.stop_tokens()));
  if (static_cast<std::size_t>(request.stop_tokens_size()) > kMostStopTokens) {
    return Invalid("stop_tokens",
                   absl::StrCat(request.stop_tokens_size(), "; at most ", kMostStopTokens));
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
  KVF_RETURN_IF_ERROR(params.Validate());  // names sampling.FIELD
  return params;
}

}  // namespace

absl::StatusOr<ReserveDemand> ToReserveDemand(const v1::ReserveRequest& request,
                                              const codec::Codec& served,
                                              const v1::Fingerprint& here) {
  if (request.epoch() == 0) return Invalid("epoch", "0; attempts count from 1");
  KVF_RETURN_IF_ERROR(CheckCodec(request.codec(), served));
  if (!request.has_fingerprint()) {
    return Invalid("fingerprint", "missing; that of the prefill worker is needed");
  }
  KVF_RETURN_IF_ERROR(rpc::CompareFingerprints(here, request.fingerprint()));
  ReserveDemand demand;
  demand.request_id = request.request_id();
  demand.demand = {.prompt_tokens = request.prompt_tokens(),
                   .max_new_tokens = request.max_new_tokens()};
  demand.epoch = Epoch{request.epoch()};
  if (request.has_lease()) {
    KVF_ASSIGN_OR_RETURN(demand.lease, rpc::ToDuration("lease", request.lease()));
  }
  return demand;
}

absl::StatusOr<RunDemand> ToRunDemand(const v1::RunRequest& request, int vocabulary) {
  RunDemand demand;
  KVF_ASSIGN_OR_RETURN(demand.id, rpc::ToTransferId("transfer_id", request.transfer_id()));
  KVF_RETURN_IF_ERROR(CheckTokens(request, vocabulary));
  if (request.max_new_tokens() == 0) return Invalid("max_new_tokens", "0; at least 1 is needed");
  KVF_ASSIGN_OR_RETURN(demand.sampling, ToSampling(request.sampling()));
  demand.epoch = Epoch{request.epoch()};
  demand.tokens.assign(request.tokens().begin(), request.tokens().end());
  demand.max_new_tokens = request.max_new_tokens();
  demand.stop_tokens.assign(request.stop_tokens().begin(), request.stop_tokens().end());
  return demand;
}

absl::StatusOr<PrefillPeer> ToPeer(const v1::HandshakeRequest& request) {
  if (request.wire_version_major() != transport::kWireMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("wire_version_major: here ", static_cast<int>(transport::kWireMajor),
                     ", there ", request.wire_version_major(), "; run the same version on both"));
  }
  PrefillPeer peer;
  if (request.pair_key().size() != peer.key.size()) {
    return Invalid("pair_key", absl::StrCat(request.pair_key().size(), " bytes; ", peer.key.size(),
                                            " are needed"));
  }
  if (request.prefill_incarnation() == 0) return Invalid("prefill_incarnation", "missing");
  if (request.data_address().empty()) return Invalid("data_address", "missing");
  std::copy(request.pair_key().begin(), request.pair_key().end(), peer.key.begin());
  peer.incarnation = Incarnation{request.prefill_incarnation()};
  peer.name = request.prefill_name();
  peer.data_address = request.data_address();
  return peer;
}

void FillStats(const AdoptedSequence& sequence, const std::string& transport,
               const codec::CacheGeometry& geometry, v1::HandoffStats& stats) {
  const int prompt_tokens = sequence.cache->prompt_tokens();
  stats.set_prompt_tokens(prompt_tokens);
  stats.set_payload_bytes(sequence.payload_bytes);
  stats.set_header_bytes(std::uint64_t{sequence.chunks} * transport::kChunkHeaderBytes);
  stats.set_raw16_bytes(codec::Raw16HandoffBytes(prompt_tokens, geometry));
  stats.set_chunks(sequence.chunks);
  stats.set_resent_chunks(sequence.bad_chunks);
  stats.set_transport(transport);
  stats.set_adopted(true);
}

void FillPool(const CacheStore& store, v1::PoolState& pool) {
  using cache::PageState;
  const auto pages = store.CountPages();
  const auto count = [&](PageState state) { return pages[static_cast<std::size_t>(state)]; };
  pool.set_codec(store.codec().name);
  pool.set_pages_free(count(PageState::kFree));
  pool.set_pages_granted(count(PageState::kGranted));
  pool.set_pages_filled(count(PageState::kFilled));
  pool.set_pages_published(count(PageState::kPublished));
  pool.set_pages_quarantined(count(PageState::kQuarantined));
  pool.set_pool_bytes(store.pool_bytes());
  pool.set_sequences(store.sequences());
}

void FillTransfer(const TransferSnapshot& snapshot, v1::TransferState& message) {
  message.set_transfer_id(snapshot.id.ToBytes());
  message.set_epoch(static_cast<std::uint32_t>(snapshot.epoch));
  message.set_request_id(snapshot.request_id);
  message.set_state(std::string(snapshot.state));
  message.set_peer(snapshot.peer);
  message.set_bytes_done(snapshot.bytes_done);
  message.set_bytes_total(snapshot.bytes_total);
  *message.mutable_age() = rpc::ToProto(snapshot.age);
}

}  // namespace kvferry::decode
