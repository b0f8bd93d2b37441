#pragma once

#include <functional>
#include <string>
#include <utility>

#include "common/metrics.h"
#include "decode_node/data_plane.h"
#include "decode_node/engine.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/decode.grpc.pb.h"

namespace kvferry::decode {

// What all services need of this worker; everything that is referred to outlives them.
struct ServiceParts {
  CacheStore& store;
  DataPlane& data_plane;
  Engine& engine;
  const Clock& clock;
  const Metrics& metrics;
  std::string name;
  v1::Fingerprint fingerprint;
  int vocabulary = 0;
  std::uint32_t max_sequences = 0;
  // host:port that others connect to: known when the server listens, before it is asked.
  std::function<std::string()> control_address;
  std::function<void()> drain;
};

// Decode: reservations and token streams, for routers. Thread: gRPC's.
class DecodeService final : public v1::Decode::CallbackService {
 public:
  explicit DecodeService(const ServiceParts& parts) : parts_(parts) {}
  grpc::ServerUnaryReactor* Reserve(grpc::CallbackServerContext* context,
                                    const v1::ReserveRequest* request, v1::Grant* grant) override;
  grpc::ServerWriteReactor<v1::TokenEvent>* Run(grpc::CallbackServerContext* context,
                                                const v1::RunRequest* request) override;
  grpc::ServerUnaryReactor* Release(grpc::CallbackServerContext* context,
                                    const v1::ReleaseRequest* request,
                                    v1::ReleaseResponse* response) override;

 private:
  absl::Status FillGrant(const v1::ReserveRequest& request, v1::Grant& grant);
  const ServiceParts& parts_;
};

// Transfer: prefill workers introduce themselves. Thread: gRPC's.
class TransferService final : public v1::Transfer::CallbackService {
 public:
  explicit TransferService(const ServiceParts& parts) : parts_(parts) {}
  grpc::ServerUnaryReactor* Handshake(grpc::CallbackServerContext* context,
                                      const v1::HandshakeRequest* request,
                                      v1::HandshakeResponse* response) override;

 private:
  const ServiceParts& parts_;
};

// Admin: for operators and routers. Thread: gRPC's.
class AdminService final : public v1::Admin::CallbackService {
 public:
  explicit AdminService(const ServiceParts& parts) : parts_(parts), start_(parts.clock.Now()) {}
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest* request,
                                     v1::GetStateResponse* response) override;

 private:
  const ServiceParts& parts_;
  const MonoTime start_;
};

}  // namespace kvferry::decode
