#include "decode_node/service.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "decode_node/convert.h"
#include "decode_node/run_call.h"
#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/fingerprint.h"
#include "rpc/status.h"

namespace kvferry::decode {

using rpc::Role;

absl::Status DecodeService::FillGrant(const v1::ReserveRequest& request, v1::Grant& grant) {
  KVF_ASSIGN_OR_RETURN(const ReserveDemand demand,
                       ToReserveDemand(request, parts_.store.codec(), parts_.fingerprint));
  const Reservation reservation =
      parts_.data_plane.Reserve(demand.request_id, demand.demand, demand.epoch, demand.lease);
  const Admission& admission = reservation.admission;
  if (!admission.status.ok()) {
    absl::Status status = admission.status;
    if (absl::IsResourceExhausted(status)) rpc::SetRetryHint(status, admission.retry_after);
    return status;
  }
  grant.set_transfer_id(reservation.id.ToBytes());
  grant.set_epoch(request.epoch());
  grant.set_decode_incarnation(static_cast<std::uint64_t>(parts_.data_plane.incarnation()));
  grant.set_decode_name(parts_.name);
  grant.set_decode_control_address(parts_.control_address());
  grant.set_codec(parts_.store.codec().name);
  grant.set_codec_hash(parts_.store.codec().Hash());
  grant.set_credits(admission.credits);
  grant.set_slot_bytes(parts_.data_plane.slot_bytes());
  *grant.mutable_lease() = rpc::ToProto(reservation.lease);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* DecodeService::Reserve(grpc::CallbackServerContext* context,
                                                 const v1::ReserveRequest* request,
                                                 v1::Grant* grant) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = rpc::CheckCaller(*context, {Role::kRouter});
  if (status.ok()) status = FillGrant(*request, *grant);
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerWriteReactor<v1::TokenEvent>* DecodeService::Run(grpc::CallbackServerContext* context,
                                                             const v1::RunRequest* request) {
  auto call = std::make_shared<RunCall>(parts_);
  const absl::Status allowed = rpc::CheckCaller(*context, {Role::kRouter});
  call->Start(allowed.ok() ? ToRunDemand(*request, parts_.vocabulary) : allowed);
  return call.get();
}

grpc::ServerUnaryReactor* DecodeService::Release(grpc::CallbackServerContext* context,
                                                 const v1::ReleaseRequest* request,
                                                 v1::ReleaseResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = rpc::CheckCaller(*context, {Role::kRouter});
  if (status.ok()) {
    const absl::StatusOr<TransferId> id = rpc::ToTransferId("transfer_id", request->transfer_id());
    status = id.status();
    if (id.ok()) {
      parts_.data_plane.Release(*id, Epoch{request->epoch()},
                                absl::CancelledError("released by the router"));
    }
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* TransferService::Handshake(grpc::CallbackServerContext* context,
                                                     const v1::HandshakeRequest* request,
                                                     v1::HandshakeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  DataPlane& data_plane = parts_.data_plane;
  transport::Path path;
  const absl::Status status = [&]() -> absl::Status {
    KVF_RETURN_IF_ERROR(rpc::CheckCaller(*context, {Role::kPrefill}));
    KVF_ASSIGN_OR_RETURN(const PrefillPeer peer, ToPeer(*request));
    KVF_RETURN_IF_ERROR(rpc::CompareFingerprints(parts_.fingerprint, request->fingerprint()));
    KVF_ASSIGN_OR_RETURN(path, data_plane.PathTo(peer.data_address));
    const auto& labels = request->transports();
    if (std::find(labels.begin(), labels.end(), path.label) == labels.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("transports: the path to the prefill worker is \"", path.label,
                       "\", which it does not offer"));
    }
    return data_plane.AddPeer(peer);
  }();
  if (status.ok()) {
    response->set_decode_name(parts_.name);
    response->set_decode_incarnation(static_cast<std::uint64_t>(data_plane.incarnation()));
    *response->mutable_fingerprint() = parts_.fingerprint;
    response->set_data_address(data_plane.LocalAddress());
    response->set_transport(path.label);
  } else {
    Log(LogLevel::kWarning, "handshake_refused",
        {{"peer", request->prefill_name()}, {"why", status}});
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request, v1::DrainResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = rpc::CheckCaller(*context, {Role::kClient, Role::kRouter});
  if (status.ok() && !request->worker().empty() && request->worker() != parts_.name) {
    status = absl::InvalidArgumentError("worker: this is \"" + parts_.name +
                                        "\"; leave the field empty, or ask the router");
  }
  if (status.ok()) parts_.drain();
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::GetState(grpc::CallbackServerContext* context,
                                                 const v1::GetStateRequest*,
                                                 v1::GetStateResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status = rpc::CheckCaller(*context, {Role::kClient, Role::kRouter});
  if (status.ok()) {
    const DataPlane& data_plane = parts_.data_plane;
    response->set_name(parts_.name);
    response->set_role("decode");
    response->set_incarnation(static_cast<std::uint64_t>(data_plane.incarnation()));
    *response->mutable_uptime() = rpc::ToProto(parts_.clock.Now() - start_);
    response->set_draining(data_plane.draining());
    *response->mutable_fingerprint() = parts_.fingerprint;
    FillPool(parts_.store, *response->mutable_pool());
    response->mutable_pool()->set_max_sequences(parts_.max_sequences);
    response->mutable_pool()->set_landing_slots_free(data_plane.free_slots());
    response->mutable_pool()->set_landing_slots_total(data_plane.slots());
    for (const TransferSnapshot& transfer : data_plane.Transfers()) {
      FillTransfer(transfer, *response->add_transfers());
    }
    const std::uint32_t running = parts_.engine.load().running;
    response->set_running_requests(running);
    response->set_queued_requests(
        std::max(static_cast<std::uint32_t>(response->transfers_size()), running) - running);
    for (const auto& [name, value] : parts_.metrics.CounterValues()) {
      (*response->mutable_counters())[name] = value;
    }
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

}  // namespace kvferry::decode
