#pragma once

#include <cstdint>

// The few instructions of tensor cores and packed halves that attention on codes is made of.
// g = lane / 4 and j = lane % 4 are the coordinates of a lane in all fragments.
namespace kvferry::kernels {

// c += a * b, m16n8k16. a0: row g, columns 2j, 2j+1; a1: row g+8; a2, a3: columns + 8.
// b0: rows 2j, 2j+1 of column g; b1: rows + 8. c0, c1: row g, columns 2j, 2j+1; c2, c3: row g+8.
__device__ __forceinline__ void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                        std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                        std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += a * b, m16n8k32, a of unsigned bytes, b of signed ones. a0: row g, bytes of columns
// 4j..4j+3; a1: row g+8; a2, a3: columns + 16. b0: rows 4j..4j+3 of column g; b1: rows + 16. c as
// of mma_f16.
__device__ __forceinline__ void mma_u8s8(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("mul.rn.f16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b,
                                                   std::uint32_t c) {
  std::uint32_t r;
  asm("fma.rn.f16x2 %0,%1,%2,%3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_add(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("add.rn.f16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("sub.rn.f16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ std::uint32_t half2_negate(std::uint32_t a) { return a ^ 0x80008000u; }
// The larger of each half; NaN where one is.
__device__ __forceinline__ std::uint32_t half2_max(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("max.NaN.f16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Both halves of a are below the half `bound`; false where one is NaN.
__device__ __forceinline__ bool half2_below(std::uint32_t a, std::uint32_t bound) {
  std::uint32_t r;
  asm("{.reg .pred p,q; setp.lt.f16x2 p|q,%1,%2; and.pred p,p,q; selp.u32 %0,1,0,p;}"
      : "=r"(r)
      : "r"(a), "r"(bound));
  return r != 0;
}
__device__ __forceinline__ std::uint32_t half2_pack(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ std::uint32_t bf162_pack(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float2 float2_from_half2(std::uint32_t a) {
  float2 r;
  asm("{.reg .f16 l,h; mov.b32 {l,h},%2; cvt.f32.f16 %0,l; cvt.f32.f16 %1,h;}"
      : "=f"(r.x), "=f"(r.y)
      : "r"(a));
  return r;
}
// Two bf16 as two fp16.
__device__ __forceinline__ std::uint32_t half2_from_bf162(std::uint32_t a) {
  return half2_pack(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u));
}
// The transpose of an 8x8 matrix of halves: a C fragment becomes a B fragment.
__device__ __forceinline__ std::uint32_t transpose_8x8(std::uint32_t a) {
  std::uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(r) : "r"(a));
  return r;
}
__device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(r) : "f"(x));
  return r;
}

__device__ __forceinline__ std::uint32_t component(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint4 load_shared16(const char* p) {
  return *reinterpret_cast<const uint4*>(p);
}

}  // namespace kvferry::kernels
