#pragma once

// Programmatic dependent launch (sm_90): a kernel that was launched so may begin before the one
// ahead of it in the stream has ended, and does what needs nothing of that one.
namespace kvferry::kernels {

// From here on the next kernel of the stream may begin, if it was launched so.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Until the kernel before this one has ended. At once where this one was launched after its end.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace kvferry::kernels
