#include "prefill_node/handshake.h"

#include <grpcpp/client_context.h>

#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvferry/v1/decode.grpc.pb.h"
#include "rpc/fingerprint.h"
#include "rpc/status.h"

namespace kvferry::prefill {

struct Handshaker::Call {
  DecodeTarget target;
  transport::PairKey key{};
  grpc::ClientContext context;
  std::unique_ptr<v1::Transfer::Stub> stub;
  v1::HandshakeRequest request;
  v1::HandshakeResponse response;
  std::vector<Done> waiting;  // guarded by Handshaker::mutex_
};

Handshaker::Handshaker(std::string name, v1::Fingerprint fingerprint,
                       const rpc::Credentials& credentials, DataPlane& data_plane,
                       absl::Duration limit)
    : name_(std::move(name)),
      fingerprint_(std::move(fingerprint)),
      credentials_(credentials),
      data_plane_(data_plane),
      limit_(limit) {}

Handshaker::~Handshaker() { Stop(); }

void Handshaker::Stop() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  for (const auto& [incarnation, call] : calls_) call->context.TryCancel();
  const auto idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
  mutex_.Await(absl::Condition(&idle));
}

void Handshaker::Ensure(const DecodeTarget& target, Done done) {
  std::shared_ptr<Call> call;
  absl::Status status = absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    std::shared_ptr<Call>& running = calls_[static_cast<std::uint64_t>(target.incarnation)];
    if (running != nullptr) {
      running->waiting.push_back(std::move(done));
      return;
    }
    const bool connected = data_plane_.HasPeer(target.incarnation);
    if (stopping_ || connected) {
      calls_.erase(static_cast<std::uint64_t>(target.incarnation));
      if (stopping_) status = absl::CancelledError("the prefill worker stops");
    } else {
      running = call = std::make_shared<Call>();
      call->target = target;
      call->waiting.push_back(std::move(done));
      ++running_;
    }
  }
  if (call != nullptr) {
    Start(call);
  } else {
    done(status);  // NOLINT(bugprone-use-after-move): it moves only into a call
  }
}

void Handshaker::Start(const std::shared_ptr<Call>& call) {
  const std::uint64_t halves[2] = {RandomId64(), RandomId64()};
  static_assert(sizeof(halves) == sizeof(call->key));
  std::memcpy(call->key.data(), halves, sizeof(halves));
  v1::HandshakeRequest& request = call->request;
  request.set_prefill_name(name_);
  request.set_prefill_incarnation(static_cast<std::uint64_t>(data_plane_.incarnation()));
  request.set_wire_version_major(transport::kWireMajor);
  request.set_wire_version_minor(transport::kWireMinor);
  *request.mutable_fingerprint() = fingerprint_;
  request.set_data_address(data_plane_.LocalAddress());
  for (const std::string& label : data_plane_.labels()) request.add_transports(label);
  request.set_pair_key(call->key.data(), call->key.size());
  call->context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(limit_));
  call->stub =
      v1::Transfer::NewStub(credentials_.Connect(call->target.control_address, rpc::Role::kDecode));
  call->stub->async()->Handshake(&call->context, &call->request, &call->response,
                                 [this, call](const grpc::Status& status) {
                                   Finish(call, status.ok() ? Adopt(*call) : rpc::FromGrpc(status));
                                 });
}

absl::Status Handshaker::Adopt(const Call& call) {
  const v1::HandshakeResponse& response = call.response;
  if (response.decode_incarnation() != static_cast<std::uint64_t>(call.target.incarnation)) {
    return absl::UnavailableError("another process answers there: the worker was restarted");
  }
  KVF_RETURN_IF_ERROR(rpc::CompareFingerprints(fingerprint_, response.fingerprint()));
  KVF_ASSIGN_OR_RETURN(const transport::Path path, data_plane_.PathTo(response.data_address()));
  if (path.label != response.transport()) {
    return absl::FailedPreconditionError(
        absl::StrCat("transports: the path to the decode worker is ", path.label,
                     ", but it has chosen ", response.transport()));
  }
  return data_plane_.AddPeer({.incarnation = call.target.incarnation,
                              .name = response.decode_name(),
                              .data_address = response.data_address(),
                              .key = call.key});
}

void Handshaker::Finish(const std::shared_ptr<Call>& call, const absl::Status& status) {
  absl::Status result = status;
  if (!status.ok()) {
    result = absl::Status(status.code(),
                          absl::StrCat("handshake with decode worker ", call->target.name, " at ",
                                       call->target.control_address, ": ", status.message()));
    Log(LogLevel::kWarning, "handshake_failed", {{"why", result}});
  }
  std::vector<Done> waiting;
  {
    absl::MutexLock lock(&mutex_);
    calls_.erase(static_cast<std::uint64_t>(call->target.incarnation));
    waiting.swap(call->waiting);
  }
  for (const Done& done : waiting) done(result);
  absl::MutexLock lock(&mutex_);
  --running_;
}

}  // namespace kvferry::prefill
