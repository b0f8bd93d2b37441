#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.h"

namespace kvferry::bench {

// The ceiling of any kernel that reads compressed blocks: reads them all, as attention does (a ring
// of two blocks for each of four warps), and computes nothing.
//   pages: [page_count], device memory; each `heads` blocks of `block_bytes`: those of the codecs
//   that are measured. rounds: how often, so that the launch itself does not count. sink: a word in
//   device memory that is never written.
absl::Status LaunchReadStream(const std::byte* const* pages, int page_count, int heads,
                              int block_bytes, int rounds, std::uint32_t* sink,
                              kernels::Stream& stream);

}  // namespace kvferry::bench
