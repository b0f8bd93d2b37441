#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvcodec/backend.h"

namespace kvferry::codec {

struct CpuBackendOptions {
  int threads = 1;      // that share one DecodeAttention call, the caller included; >= 1
  bool scalar = false;  // the reference instead of SIMD: for tests and as the bench's baseline
};

// kInvalidArgument: threads out of range.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace kvferry::codec
