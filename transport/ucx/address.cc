#include "transport/ucx/address.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/strings/str_cat.h"
#include "common/coding.h"
#include "common/crc32c.h"

namespace kvferry::transport {
namespace {

constexpr std::uint32_t kAddressMagic = 0x3155564b;  // "KVU1"
constexpr std::size_t kAddressHeaderBytes = 8;       // magic, crc32c of the rest

std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

std::string WrapAddress(const std::string& worker_address) {
  std::array<std::byte, kAddressHeaderBytes> header{};
  StoreLittle<std::uint32_t>(header, 0, kAddressMagic);
  StoreLittle<std::uint32_t>(header, 4, Crc32c(AsBytes(worker_address)));
  return absl::StrCat(
      absl::string_view(reinterpret_cast<const char*>(header.data()), header.size()),
      worker_address);
}

absl::StatusOr<std::string> UnwrapAddress(std::string_view wrapped) {
  if (wrapped.size() <= kAddressHeaderBytes)
    return absl::InvalidArgumentError("data address: too short");
  const std::span<const std::byte> bytes = AsBytes(wrapped);
  const std::string address(wrapped.substr(kAddressHeaderBytes));
  if (LoadLittle<std::uint32_t>(bytes, 0) != kAddressMagic ||
      LoadLittle<std::uint32_t>(bytes, 4) != Crc32c(AsBytes(address))) {
    return absl::InvalidArgumentError(
        "data address: not an address of a UCX transport, or damaged");
  }
  return address;
}

}  // namespace kvferry::transport
