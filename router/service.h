#pragma once

#include "common/clock.h"
#include "common/metrics.h"
#include "kvferry/v1/admin.grpc.pb.h"
#include "kvferry/v1/inference.grpc.pb.h"
#include "router/engine.h"
#include "router/intake.h"
#include "router/registry.h"
#include "router/registry_service.h"

namespace kvferry::router {

// Inference takes its two methods with text as raw bytes: a message with a string that is not UTF-8
// never becomes a message, and gRPC's own answer to that names no field.
using InferenceBase = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_CountTokens<v1::Inference::WithCallbackMethod_Cancel<
        v1::Inference::WithCallbackMethod_GetModelInfo<v1::Inference::Service>>>>;

// Inference: clients' calls become requests, what comes of them becomes messages. Thread: gRPC's.
class InferenceService final : public InferenceBase {
 public:
  // All outlive the server that serves it. Texts are tokenized on `intake_loop`: a long one must
  // not hold up gRPC's few threads, which also hear the workers' reports.
  InferenceService(const ServedModel& model, const Offer& offer, Engine& engine, Loop& intake_loop)
      : model_(model),
        offer_(offer),
        intake_(model, offer),
        engine_(engine),
        intake_loop_(intake_loop),
        clock_(intake_loop.clock()) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;

 private:
  const ServedModel& model_;
  const Offer& offer_;
  const Intake intake_;
  Engine& engine_;
  Loop& intake_loop_;
  const Clock& clock_;
};

// Admin: for operators. Thread: gRPC's.
class AdminService final : public v1::Admin::CallbackService {
 public:
  // `identity` has what never changes: name, role, incarnation.
  AdminService(v1::GetStateResponse identity, Engine& engine, const Registry& registry,
               RegistryService& registry_service, Loop& loop, const Metrics& metrics,
               std::function<void()> drain)
      : identity_(std::move(identity)),
        engine_(engine),
        registry_(registry),
        registry_service_(registry_service),
        loop_(loop),
        metrics_(metrics),
        drain_(std::move(drain)),
        start_(loop.Now()) {}

  // With a worker's name: that worker. Empty: this router takes nothing new.
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest* request,
                                     v1::GetStateResponse* response) override;

 private:
  void FillState(v1::GetStateResponse& response) const;  // loop

  const v1::GetStateResponse identity_;
  Engine& engine_;
  const Registry& registry_;
  RegistryService& registry_service_;
  Loop& loop_;
  const Metrics& metrics_;
  const std::function<void()> drain_;
  const MonoTime start_;
};

}  // namespace kvferry::router
