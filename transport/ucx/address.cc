#include "transport/ucx/address.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/coding.h"
#include "common/crc32c.h"
#include "common/ids.h"

namespace kvferry::transport {
namespace {

// 0 magic 'KVU3' | 4 crc32c of what follows | 8 host u64 | 16 process u64 | 24 gpu u64 |
// 32 unreachable GPUs u32 | 36 zero u32 | 40 u64 for each of them | the worker's address
constexpr std::uint32_t kMagic = 0x3355564b;
constexpr std::size_t kHeaderBytes = 40;
constexpr std::size_t kChecked = 8;  // the CRC32C begins here
constexpr std::size_t kMaxGpus = 256;

std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

absl::StatusOr<UcxAddress> LocalUcxAddress(const DeviceMemory* device, std::string worker) {
  static const std::uint64_t process = RandomId64();
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  if (!std::getline(file, boot_id) || boot_id.size() != 36)
    return absl::InternalError("/proc/sys/kernel/random/boot_id cannot be read");
  // CUDA's handles of device memory do not cross a border between PID namespaces.
  struct stat pid_namespace {};
  if (stat("/proc/self/ns/pid", &pid_namespace) != 0)
    return absl::InternalError("/proc/self/ns/pid cannot be read");
  boot_id.erase(std::remove(boot_id.begin(), boot_id.end(), '-'), boot_id.end());
  UcxAddress address{.host = std::strtoull(boot_id.substr(0, 16).c_str(), nullptr, 16) ^
                             std::strtoull(boot_id.substr(16).c_str(), nullptr, 16) ^
                             std::rotl(std::uint64_t{pid_namespace.st_ino}, 32),
                     .process = process,
                     .worker = std::move(worker)};
  if (device != nullptr) {
    address.gpu = device->id();
    address.unreachable = device->unreachable();
  }
  return address;
}

std::string PackAddress(const UcxAddress& address) {
  std::array<std::byte, kHeaderBytes> header{};
  StoreLittle<std::uint32_t>(header, 0, kMagic);
  StoreLittle<std::uint64_t>(header, 8, address.host);
  StoreLittle<std::uint64_t>(header, 16, address.process);
  StoreLittle<std::uint64_t>(header, 24, address.gpu);
  StoreLittle<std::uint32_t>(header, 32, static_cast<std::uint32_t>(address.unreachable.size()));
  std::string packed(reinterpret_cast<const char*>(header.data()), header.size());
  for (const std::uint64_t gpu : address.unreachable) {
    std::array<std::byte, sizeof(gpu)> id{};
    StoreLittle<std::uint64_t>(id, 0, gpu);
    packed.append(reinterpret_cast<const char*>(id.data()), id.size());
  }
  packed += address.worker;
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(packed));
  StoreLittle<std::uint32_t>(bytes, 4, Crc32c(bytes.subspan(kChecked)));
  return packed;
}

absl::StatusOr<UcxAddress> UnpackAddress(std::string_view packed) {
  if (packed.size() <= kHeaderBytes) return absl::InvalidArgumentError("data address: too short");
  const std::span<const std::byte> bytes = AsBytes(packed);
  const std::size_t gpus = LoadLittle<std::uint32_t>(bytes, 32);
  if (LoadLittle<std::uint32_t>(bytes, 0) != kMagic ||
      LoadLittle<std::uint32_t>(bytes, 4) != Crc32c(bytes.subspan(kChecked)) ||
      LoadLittle<std::uint32_t>(bytes, 36) != 0 || gpus > kMaxGpus ||
      packed.size() <= kHeaderBytes + gpus * sizeof(std::uint64_t)) {
    return absl::InvalidArgumentError(
        "data address: not an address of a UCX transport of this version, or damaged");
  }
  UcxAddress address{.host = LoadLittle<std::uint64_t>(bytes, 8),
                     .process = LoadLittle<std::uint64_t>(bytes, 16),
                     .gpu = LoadLittle<std::uint64_t>(bytes, 24)};
  std::size_t at = kHeaderBytes;
  for (std::size_t i = 0; i < gpus; ++i, at += sizeof(std::uint64_t)) {
    address.unreachable.push_back(LoadLittle<std::uint64_t>(bytes, at));
  }
  address.worker = packed.substr(at);
  return address;
}

}  // namespace kvferry::transport
