#pragma once

#include <functional>

#include "common/metrics.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/prefill.grpc.pb.h"
#include "prefill_node/convert.h"
#include "prefill_node/engine.h"
#include "prefill_node/handshake.h"

namespace kvferry::prefill {

// Prefill: translates calls into jobs and jobs into events; routers only. Thread: gRPC's.
class PrefillService final : public v1::Prefill::CallbackService {
 public:
  // All outlive the server that serves it.
  PrefillService(const PromptLimits& limits, Engine& engine, Handshaker& handshaker)
      : limits_(limits), engine_(engine), handshaker_(handshaker) {}

  grpc::ServerWriteReactor<v1::PrefillEvent>* Run(grpc::CallbackServerContext* context,
                                                  const v1::PrefillRequest* request) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;

 private:
  const PromptLimits limits_;
  Engine& engine_;
  Handshaker& handshaker_;
};

// Admin: for operators and routers. Thread: gRPC's.
class AdminService final : public v1::Admin::CallbackService {
 public:
  // `identity` has what never changes: name, role, incarnation, fingerprint.
  AdminService(v1::GetStateResponse identity, const Engine& engine, const DataPlane& data_plane,
               const Clock& clock, const Metrics& metrics, std::function<void()> drain)
      : identity_(std::move(identity)),
        engine_(engine),
        data_plane_(data_plane),
        clock_(clock),
        metrics_(metrics),
        drain_(std::move(drain)),
        start_(clock.Now()) {}

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest* request,
                                     v1::GetStateResponse* response) override;

 private:
  const v1::GetStateResponse identity_;
  const Engine& engine_;
  const DataPlane& data_plane_;
  const Clock& clock_;
  const Metrics& metrics_;
  const std::function<void()> drain_;
  const MonoTime start_;
};

}  // namespace kvferry::prefill
