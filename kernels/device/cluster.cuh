#pragma once

#include <cstdint>

// Thread block clusters (sm_90): thread blocks that run at the same time and read each other's
// shared memory. Before sm_90 no kernel is launched in clusters.
namespace kvferry::kernels {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kHasClusters = true;
#else
inline constexpr bool kHasClusters = false;
#endif

// This thread block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// A barrier of all threads of a cluster in two halves: what was written to shared memory before
// arriving can be read after waiting. By all threads, arrive and wait in turns.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Where thread block `rank` of the cluster has what this one has at `address`.
__device__ __forceinline__ std::uint32_t shared_of(int rank, std::uint32_t address) {
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(address) : "r"(address), "r"(rank));
#endif
  return address;
}
// Loads floats of thread block `rank`, from where this one has them at `address`, aligned to them.
template <int kCount>
__device__ __forceinline__ void load_shared_of(int rank, std::uint32_t address,
                                               float (&x)[kCount]) {
#if __CUDA_ARCH__ >= 900
  const std::uint32_t from = shared_of(rank, address);
  if constexpr (kCount == 1) {
    asm volatile("ld.shared::cluster.f32 %0,[%1];" : "=f"(x[0]) : "r"(from));
  } else if constexpr (kCount == 2) {
    asm volatile("ld.shared::cluster.v2.f32 {%0,%1},[%2];" : "=f"(x[0]), "=f"(x[1]) : "r"(from));
  } else {
    static_assert(kCount == 4);
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3},[%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
                 : "r"(from));
  }
#endif
}

}  // namespace kvferry::kernels
