#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kvcodec/kv_view.h"

// Two 16-bit values in a register, as K and V leave the model. Minima and maxima pass NaN on, so
// that the extremes of a group tell whether all of it is finite.
namespace kvferry::kernels {

template <codec::Raw16 kType>
struct Pair;

template <>
struct Pair<codec::Raw16::kFp16> {
  static constexpr std::uint32_t kInfinity = 0x7c00;
  static __device__ __forceinline__ std::uint32_t min(std::uint32_t a, std::uint32_t b) {
    std::uint32_t r;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  static __device__ __forceinline__ std::uint32_t max(std::uint32_t a, std::uint32_t b) {
    std::uint32_t r;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  static __device__ __forceinline__ float low(std::uint32_t a) {
    return __half2float(__ushort_as_half(static_cast<std::uint16_t>(a)));
  }
  static __device__ __forceinline__ float high(std::uint32_t a) {
    return __half2float(__ushort_as_half(static_cast<std::uint16_t>(a >> 16)));
  }
};

template <>
struct Pair<codec::Raw16::kBf16> {
  static constexpr std::uint32_t kInfinity = 0x7f80;
  static __device__ __forceinline__ std::uint32_t min(std::uint32_t a, std::uint32_t b) {
    std::uint32_t r;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  static __device__ __forceinline__ std::uint32_t max(std::uint32_t a, std::uint32_t b) {
    std::uint32_t r;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  static __device__ __forceinline__ float low(std::uint32_t a) { return __uint_as_float(a << 16); }
  static __device__ __forceinline__ float high(std::uint32_t a) {
    return __uint_as_float(a & 0xffff0000u);
  }
};

// (low half of a, low half of b) and (high half of a, high half of b).
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}

// Memory that is read once: 16 or 8 aligned bytes that no one writes while the kernel runs.
__device__ __forceinline__ uint4 load_once16(const void* from) {
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(from));
  return r;
}
__device__ __forceinline__ void prefetch_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
#if __CUDA_ARCH__ >= 900
// `bytes` (a multiple of 16) from `from` on, which is aligned to 16 bytes.
__device__ __forceinline__ void prefetch_l2_bulk(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
}
#endif
__device__ __forceinline__ uint2 load_once8(const void* from) {
  uint2 r;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(r.x), "=r"(r.y)
               : "l"(from));
  return r;
}

}  // namespace kvferry::kernels
