#pragma once

#include "absl/status/status.h"
#include "kvferry/v1/types.pb.h"

namespace kvferry::rpc {

// Sets `hash` from the other fields.
void SealFingerprint(v1::Fingerprint& fingerprint);
// OK, or kFailedPrecondition with every field that differs: "head_dim: here 64, there 128".
absl::Status CompareFingerprints(const v1::Fingerprint& here, const v1::Fingerprint& there);

}  // namespace kvferry::rpc
