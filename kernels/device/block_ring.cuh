#pragma once

#include <cstdint>

#include "kernels/device/values.cuh"

// Compressed blocks on their way into shared memory: a ring of one warp, no barrier of the thread
// block. On sm_90 one lane starts a bulk copy per block, before that all lanes copy 16 bytes each.
namespace kvferry::kernels {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

template <int kStages, int kBlockBytes>
class BlockRing {
 public:
  __device__ __forceinline__ BlockRing(char* slots, std::uint64_t* full, int lane)
      : memory_(slots), slots_(shared_address(slots)), full_(shared_address(full)), lane_(lane) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0,1.0;" : "=l"(policy_));
    if (lane_ == 0) {
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0],1;" ::"r"(full_ + stage * 8));
      }
      asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncwarp();
  }
  // All lanes have read what was in the slot.
  __device__ __forceinline__ void load(int stage, const char* block) {
    if (!elected()) return;
    const std::uint32_t full = full_ + stage * 8;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(full),
                 "r"(kBlockBytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0],[%1],%2,[%3],%4;" ::"r"(slots_ + stage * kBlockBytes),
        "l"(block), "r"(kBlockBytes), "r"(full), "l"(policy_)
        : "memory");
  }
  // Into the L2 cache, for a later load.
  __device__ __forceinline__ void prefetch(const char* block) const {
    if (elected()) prefetch_l2_bulk(block, kBlockBytes);
  }
  __device__ __forceinline__ void skip() {}
  // The block that was loaded into `stage`.
  __device__ __forceinline__ const char* wait(int stage, std::uint32_t phase) {
    asm volatile(
        "{.reg .pred p; wait_full_%=: mbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n"
        "@p bra is_full_%=; bra wait_full_%=; is_full_%=: }" ::"r"(full_ + stage * 8),
        "r"(phase)
        : "memory");
    return memory_ + stage * kBlockBytes;
  }

 private:
  static __device__ __forceinline__ bool elected() {
    std::uint32_t elected;
    asm volatile("{.reg .pred p; elect.sync _|p,0xffffffff; selp.u32 %0,1,0,p;}" : "=r"(elected));
    return elected != 0;
  }

  const char* memory_;
  std::uint32_t slots_, full_;
  int lane_;
  std::uint64_t policy_;
};

#else

template <int kStages, int kBlockBytes>
class BlockRing {
 public:
  __device__ __forceinline__ BlockRing(char* slots, std::uint64_t*, int lane)
      : memory_(slots), slots_(shared_address(slots)), lane_(lane) {}
  __device__ __forceinline__ void load(int stage, const char* block) {
    const std::uint32_t slot = slots_ + stage * kBlockBytes;
#pragma unroll
    for (int at = 0; at < kBlockBytes; at += 512) {
      const int i = at + lane_ * 16;
      if (i < kBlockBytes) {
        asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(slot + i), "l"(block + i)
                     : "memory");
      }
    }
    skip();
  }
  __device__ __forceinline__ void prefetch(const char*) const {}
  // In place of load where there is no block left, so that groups are counted alike.
  __device__ __forceinline__ void skip() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // The group of `stage` is the oldest of kStages.
  __device__ __forceinline__ const char* wait(int stage, std::uint32_t) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    __syncwarp();
    return memory_ + stage * kBlockBytes;
  }

 private:
  const char* memory_;
  std::uint32_t slots_;
  int lane_;
};

#endif

}  // namespace kvferry::kernels
