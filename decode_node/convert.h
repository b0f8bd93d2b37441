#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "decode_node/cache_store.h"
#include "decode_node/data_plane.h"
#include "decode_node/engine.h"
#include "kvferry/v1/admin.pb.h"
#include "kvferry/v1/decode.pb.h"
#include "kvferry/v1/registry.pb.h"
#include "model/sampler.h"

// Between messages and the node's own types. What comes from outside is checked here.
namespace kvferry::decode {

// What Decode.Reserve asks for, checked.
struct ReserveDemand {
  std::string request_id;
  Demand demand;
  Epoch epoch{};
  absl::Duration lease;  // zero: the worker's
};
// kNotFound: a codec that the pool does not hold; names the one that it does. kFailedPrecondition:
// another fingerprint, with the difference. kInvalidArgument names the field.
absl::StatusOr<ReserveDemand> ToReserveDemand(const v1::ReserveRequest& request,
                                              const codec::Codec& served,
                                              const v1::Fingerprint& here);

// What Decode.Run asks for, checked.
struct RunDemand {
  TransferId id;
  Epoch epoch{};
  std::vector<std::int32_t> tokens;
  model::SamplingParams sampling;
  std::uint32_t max_new_tokens = 0;
  std::vector<std::int32_t> stop_tokens;
};
// kInvalidArgument names the field, its value and what is allowed.
absl::StatusOr<RunDemand> ToRunDemand(const v1::RunRequest& request, int vocabulary);

// kInvalidArgument names the field. kFailedPrecondition: another wire version, with both.
absl::StatusOr<PrefillPeer> ToPeer(const v1::HandshakeRequest& request);

// What the hand-off moved, as far as this side knows: prefill times are prefill's to tell.
void FillStats(const AdoptedSequence& sequence, const std::string& transport,
               const codec::CacheGeometry& geometry, v1::HandoffStats& stats);
void FillPool(const CacheStore& store, v1::PoolState& pool);
void FillTransfer(const TransferSnapshot& snapshot, v1::TransferState& message);

}  // namespace kvferry::decode
