#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "decode_node/cache_store.h"

namespace kvferry::bench {

// Hands one prompt off to each of `to` without a network: laid out and encoded as prefill does,
// once, then checked and adopted as decode does. All are published then.
//   layers: K and V of every layer in the quantizer's memory, of the store's 16-bit type. slot:
//   where payloads lie in between; page-locked where the store is on a GPU.
// Returns the bytes of the payloads that a sequence got.
absl::StatusOr<std::size_t> HandOff(std::span<const codec::KvView> layers,
                                    const codec::Quantizer& quantizer, decode::CacheStore& store,
                                    std::span<std::byte> slot,
                                    std::span<const std::unique_ptr<decode::StoredSequence>> to);

}  // namespace kvferry::bench
