#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/device.h"
#include "bench/quality/measure.h"
#include "bench/quality/passages.h"
#include "bench/quality/record.h"
#include "bench/quality/scheme.h"

namespace kvferry::bench {

// Measures SimulatedCodecs on passages by plain LibTorch attention: all tokens after the prompt go
// through the model in one step, each as a sequence of its own, and every query reads those keys
// and values as codes that were codes when it came. What it gives is what a cache of that codec
// gives through the path that serves, but for the rounding of the kernels, in seconds.
// Thread: one at a time.
class Simulation {
 public:
  // device and backend outlive it; the backend, on CPUs, makes the bytes of production codecs.
  // kUnavailable: LibTorch does not work there.
  static absl::StatusOr<std::unique_ptr<Simulation>> Create(Device& device,
                                                            const codec::Backend& backend);
  virtual ~Simulation() = default;

  // `exact`: of this passage. The record has likelihoods and divergences, and no bytes.
  // kInvalidArgument: a value that the production codec cannot store.
  virtual absl::StatusOr<Record> Run(const SimulatedCodec& codec, const Passage& passage,
                                     const ExactPassage& exact) = 0;
};

// Bits per value of K and V after `tokens` tokens, those in 16 bits counted.
absl::StatusOr<double> ResidentBits(const SimulatedCodec& codec, int tokens,
                                    const codec::CacheGeometry& geometry);

}  // namespace kvferry::bench
