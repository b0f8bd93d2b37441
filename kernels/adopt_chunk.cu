#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/adopt_chunk.h"
#include "kernels/cuda/status.h"
#include "kernels/device/chunk_check.cuh"
#include "kernels/device/values.cuh"

namespace kvferry::kernels {
namespace {

constexpr int kWarps = 8;
constexpr int kRunSlabs = 8;
constexpr int kRunBytes = kRunSlabs * kCheckSlabBytes;
static_assert(kRunSlabs <= kCheckRunSlabs);
constexpr int kCtaBytes = kWarps * kRunBytes;

// 16 bytes of a payload of which only `count` are left; what lies behind is not read.
__device__ __noinline__ uint4 load_tail(const std::byte* from, int count) {
  std::uint32_t words[4] = {};
  for (int i = 0; i < count; ++i) {
    words[i / 4] |= static_cast<std::uint32_t>(from[i]) << (8 * (i % 4));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __noinline__ void store_tail(std::byte* to, const uint4& piece, int count) {
  const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
  for (int i = 0; i < count; ++i) to[i] = static_cast<std::byte>(words[i / 4] >> (8 * (i % 4)));
}

// The destinations of falling offsets: divides only where a page begins.
struct PageWalk {
  const AdoptPart& part;
  int begin = 0;  // offset of the page in hand
  std::byte* page = nullptr;

  __device__ __forceinline__ PageWalk(const AdoptPart& of, int offset) : part(of) {
    if (offset >= 0 && of.pages != nullptr) find(offset);
  }
  __device__ __forceinline__ void find(int offset) {
    const unsigned index = static_cast<unsigned>(offset) / part.page_bytes;
    begin = static_cast<int>(index * part.page_bytes);
    page = part.pages[index];
  }
  __device__ __forceinline__ std::byte* at(int offset) {
    if (offset < begin) find(offset);
    return page + (offset - begin);
  }
};

// Grid (CTAs of the largest part, parts). A warp takes a run of 4 KiB, counted from the payload's
// end, so that all but the first run are whole.
__global__ void __launch_bounds__(32 * kWarps, 4)
    adopt_chunk_kernel(const __grid_constant__ AdoptParams params) {
  const AdoptPart& part = params.parts[blockIdx.y];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int padded =
      static_cast<int>((part.bytes + kCheckUnitBytes - 1) / kCheckUnitBytes * kCheckUnitBytes);
  const int run = static_cast<int>(blockIdx.x) * kWarps + warp;
  const int run_end = padded - run * kRunBytes;
  if (padded <= static_cast<int>(blockIdx.x) * kCtaBytes) return;
  std::uint32_t sum = 0;
  if (run_end > 0) {
    const int first = run_end - kCheckSlabBytes + kCheckUnitBytes * lane;
    const int last = static_cast<int>(part.bytes) - first;  // bytes left where the run ends
    uint4 pieces[kRunSlabs];
    pieces[0] = first < 0                 ? make_uint4(0, 0, 0, 0)
                : last >= kCheckUnitBytes ? load_once16(part.payload + first)
                                          : load_tail(part.payload + first, last);
#pragma unroll
    for (int e = 1; e < kRunSlabs; ++e) {
      const int offset = first - e * kCheckSlabBytes;
      pieces[e] = offset < 0 ? make_uint4(0, 0, 0, 0) : load_once16(part.payload + offset);
    }
    RunCheck check;
    PageWalk pages(part, first);
#pragma unroll
    for (int e = 0; e < kRunSlabs; ++e) {
      const int offset = first - e * kCheckSlabBytes;
      SlabMatrices matrices;
      matrices.load(params.tables, 0, e, lane);
      check.add(matrices, pieces[e]);
      if (offset < 0 || part.pages == nullptr) continue;
      std::byte* to = pages.at(offset);
      if (e == 0 && last < kCheckUnitBytes) {
        store_tail(to, pieces[e], last);
      } else {
        __stcs(reinterpret_cast<uint4*>(to), pieces[e]);
      }
    }
    sum = check.residue(params.tables, warp * (kRunBytes / kCheckUnitBytes), lane);
  }
  add_residues<kWarps>(params.tables, sum,
                       part.after_units + blockIdx.x * (kCtaBytes / kCheckUnitBytes),
                       params.residues + part.residue);
}

absl::Status Invalid(int part, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("adopt_chunk: part ", part, ": ", what));
}

absl::Status Check(const AdoptParams& params) {
  if (params.part_count < 0 || params.part_count > kMaxAdoptParts || params.residues == nullptr ||
      params.tables == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("adopt_chunk: ", params.part_count,
                                                   " parts of at most ", kMaxAdoptParts,
                                                   ", or residues or tables are null"));
  }
  for (int i = 0; i < params.part_count; ++i) {
    const AdoptPart& part = params.parts[i];
    if (part.payload == nullptr) return Invalid(i, "a null pointer");
    if (reinterpret_cast<std::uintptr_t>(part.payload) % kCheckUnitBytes != 0) {
      return Invalid(i, "the payload is not aligned to 16 bytes");
    }
    if (part.page_bytes == 0 || part.page_bytes % kCheckUnitBytes != 0) {
      return Invalid(i, "page_bytes is not a multiple of 16");
    }
    if (part.bytes == 0 || part.bytes > kCheckMaxBytes ||
        part.after_units > (kCheckMaxBytes - part.bytes) / kCheckUnitBytes) {
      return Invalid(i, absl::StrCat(part.bytes, " bytes; a chunk has 1 to ", kCheckMaxBytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LaunchAdoptChunk(const AdoptParams& params, Stream& stream) {
  if (const absl::Status status = Check(params); !status.ok()) return status;
  std::uint32_t largest = 0;
  for (int i = 0; i < params.part_count; ++i) largest = std::max(largest, params.parts[i].bytes);
  if (largest == 0) return absl::OkStatus();
  const dim3 grid((largest + kCtaBytes - 1) / kCtaBytes, params.part_count);
  adopt_chunk_kernel<<<grid, 32 * kWarps, 0, stream.get()>>>(params);
  return LaunchStatus("adopt_chunk");
}

}  // namespace kvferry::kernels
