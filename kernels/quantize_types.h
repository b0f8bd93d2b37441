#pragma once

#include <cstddef>
#include <cstdint>

// What quantize_block and flush_window share: one work item, and the record of the first value that
// cannot be stored.
namespace kvferry::kernels {

// One page: 64 tokens of one layer, all local KV heads.
//   k, v: head h, token t, channel c at h * head_stride + row(t) * token_stride + c, in elements,
//         where row(t) = first_row + t, less ring_rows from there on. head_dim contiguous, rows
//         16-byte aligned. ring_rows 0: not a ring.
//   page: PageBytes(spec, kv_heads) bytes, 128-byte aligned.
struct alignas(16) QuantizeItem {
  const std::uint16_t* k = nullptr;
  const std::uint16_t* v = nullptr;
  std::byte* page = nullptr;
  std::int64_t head_stride = 0;
  std::int32_t token_stride = 0;
  std::int32_t token = 0;  // of coupled pages: the position of the first one
  std::int32_t first_row = 0;
  std::int32_t ring_rows = 0;
  std::uint8_t k_bits = 0;  // of kScalar pages: a codec may have other bits in some layers
  std::uint8_t v_bits = 0;
  std::uint16_t layer = 0;        // of coupled pages: whose codebooks
  std::uint32_t chunk = 0;        // whose residue this page's bytes belong to
  std::uint32_t after_units = 0;  // 16-byte units of the chunk that follow this page
};
static_assert(sizeof(QuantizeItem) == 64);

// A set of numbers of bits.
using Widths = std::uint32_t;
constexpr Widths WidthOf(int bits) { return Widths{1} << bits; }
inline constexpr Widths kAllWidths = WidthOf(1) | WidthOf(2) | WidthOf(3) | WidthOf(4) | WidthOf(8);
// Those that a faster kernel makes, if a launch has no others.
inline constexpr Widths kFastWidths = WidthOf(2) | WidthOf(4);

// The first fault of a launch by item, head, K before V, values before scales, token, channel; the
// order of kvcodec/cpu. kNoFault: none. One word, so that the least of all that threads report is
// the same in every run.
inline constexpr std::uint64_t kNoFault = ~std::uint64_t{0};

struct Fault {
  std::uint32_t item = 0;
  int head = 0;
  bool is_v = false;
  bool is_scale = false;  // of a group; else a value that is NaN or infinite
  int token = 0;          // of K scales: the first of the group
  int channel = 0;        // of V scales: 0
};

constexpr int kFaultHeads = 1 << 12;

constexpr std::uint64_t FaultKey(const Fault& fault) {
  return std::uint64_t{fault.item} << 32 | std::uint64_t(fault.head) << 20 |
         std::uint64_t{fault.is_v} << 19 | std::uint64_t{fault.is_scale} << 18 |
         std::uint64_t(fault.token) << 9 | std::uint64_t(fault.channel);
}
constexpr Fault FaultOf(std::uint64_t key) {
  return {.item = static_cast<std::uint32_t>(key >> 32),
          .head = static_cast<int>(key >> 20 & 0xfffu),
          .is_v = (key >> 19 & 1u) != 0,
          .is_scale = (key >> 18 & 1u) != 0,
          .token = static_cast<int>(key >> 9 & 0x1ffu),
          .channel = static_cast<int>(key & 0x1ffu)};
}

}  // namespace kvferry::kernels
