#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvferry/v1/admin.pb.h"
#include "kvferry/v1/decode.pb.h"
#include "kvferry/v1/inference.pb.h"
#include "kvferry/v1/prefill.pb.h"
#include "kvferry/v1/registry.pb.h"
#include "router/engine.h"
#include "router/registry.h"
#include "router/types.h"

// Between messages and the router's own types.
namespace kvferry::router {

// -- Workers.
// kInvalidArgument: the role is neither prefill nor decode.
absl::StatusOr<WorkerInfo> ToWorkerInfo(const v1::Join& join);
absl::StatusOr<WorkerLoad> ToWorkerLoad(const v1::Load& load);
v1::RunRequest MakeRunRequest(const GenerateSpec& spec, const v1::Grant& grant,
                              const std::vector<std::int32_t>& tokens,
                              std::uint32_t max_new_tokens);
v1::PrefillRequest MakePrefillRequest(const GenerateSpec& spec, const v1::Grant& grant,
                                      const std::vector<std::int32_t>& tokens);
// A duration out of range counts as none.
void FillHandoff(const v1::HandoffStats& message, Handoff& handoff);

// -- Clients.
void FillEnd(const AnswerEnd& end, v1::Finished& message);

// -- Operators.
void FillWorker(const Worker& worker, MonoTime now, v1::WorkerState& message);
void FillTransfer(const RunningRequest& request, v1::TransferState& message);

}  // namespace kvferry::router
