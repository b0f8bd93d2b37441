#include "model/torch_device.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/device_name.h"
#include "common/status_macros.h"
#include "model/torch_status.h"

namespace kvferry::model {
namespace {

// Its static initializers register the CUDA kernels with libtorch_cpu, which stands beside it.
absl::Status LoadCudaPart() {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (library != nullptr) return absl::OkStatus();
  const char* why = dlerror();
  return absl::UnavailableError(absl::StrCat(
      "LibTorch's CUDA part cannot be loaded (", why == nullptr ? "an earlier try failed" : why,
      "): use a torch with CUDA and put its lib folder and its NVIDIA libraries on "
      "LD_LIBRARY_PATH"));
}

}  // namespace

absl::StatusOr<TorchDevice> TorchDevice::Open(const std::string& name, void* stream) {
  KVF_ASSIGN_OR_RETURN(const std::optional<int> ordinal, GpuOrdinal(name));
  if (!ordinal.has_value()) return TorchDevice(c10::kCPU, std::nullopt);
  if (stream == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " without a stream"));
  KVF_RETURN_IF_ERROR(LoadCudaPart());
  const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(*ordinal));
  KVF_RETURN_IF_ERROR(CatchTorch(name.c_str(), [&]() -> absl::Status {
    if (!at::globalContext().hasCUDA()) {
      return absl::UnavailableError(absl::StrCat(name, ": LibTorch sees no GPU or no driver"));
    }
    at::globalContext().lazyInitDevice(c10::kCUDA);
    const int count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
    if (*ordinal < count) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(name, ": this process sees ", count, " GPUs"));
  }));
  // c10_cuda takes the handle of a foreign stream as its id.
  return TorchDevice(
      device, c10::Stream(c10::Stream::UNSAFE, device, reinterpret_cast<std::intptr_t>(stream)));
}

TorchDevice::Scope::Scope(const TorchDevice& device) : device_before_(device.device_) {
  if (!device.stream_.has_value()) return;
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  device_before_ = guard.exchangeDevice(device.device_);
  before_ = guard.exchangeStream(*device.stream_);
}

TorchDevice::Scope::~Scope() {
  if (!before_.has_value()) return;
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  guard.exchangeStream(*before_);
  guard.uncheckedSetDevice(device_before_);
}

}  // namespace kvferry::model
