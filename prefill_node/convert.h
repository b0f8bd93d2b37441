#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvferry/v1/admin.pb.h"
#include "kvferry/v1/prefill.pb.h"
#include "kvferry/v1/registry.pb.h"
#include "prefill_node/data_plane.h"
#include "prefill_node/engine.h"

// Between messages and the node's own types. What comes from outside is checked here.
namespace kvferry::prefill {

// What a prompt and its codec may be.
struct PromptLimits {
  int vocabulary = 0;
  int max_context_tokens = 0;
  codec::CodebookSet codebooks;  // of coupled codecs
};

// kInvalidArgument names the field, its value and what is allowed. kFailedPrecondition: the grant's
// codec is not the one of that name here, or its codebooks have not been read here.
absl::StatusOr<JobRequest> ToJobRequest(const v1::PrefillRequest& request,
                                        const PromptLimits& limits);

void FillStats(const HandoffSummary& summary, v1::HandoffStats& stats);
void FillLoad(const EngineLoad& load, v1::Load& message);
void FillTransfer(const TransferSnapshot& snapshot, const std::string& request_id,
                  v1::TransferState& message);

}  // namespace kvferry::prefill
