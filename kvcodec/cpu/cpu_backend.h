#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/backend.h"

namespace kvferry::codec {

struct CpuBackendOptions {
  int threads = 1;      // that share one DecodeAttention call, the caller included; >= 1
  bool scalar = false;  // the reference instead of SIMD: for tests and as the bench's baseline
};

// kInvalidArgument: threads out of range.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

// The instruction sets that the SIMD backend can use on this CPU, best first: "avx512-vnni",
// "avx512", "avx2". Empty: it does its work with the scalar reference.
std::vector<std::string> SimdTargets();
// For tests and benches: every CPU backend of this process uses this target from now on; "" is the
// best again. Not while a call runs. kNotFound names what there is.
absl::Status ForceSimdTarget(std::string_view target);

}  // namespace kvferry::codec
