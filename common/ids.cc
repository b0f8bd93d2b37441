#include "common/ids.h"

#include <sys/random.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/string_view.h"

namespace kvferry {
namespace {

// The kernel's generator; without it no id is safe, so there is nothing to go on with.
void FillRandom(void* out, std::size_t bytes) {
  if (getrandom(out, bytes, 0) != static_cast<ssize_t>(bytes)) std::abort();
}

}  // namespace

TransferId TransferId::Random() {
  TransferId id;
  FillRandom(id.bytes.data(), id.bytes.size());
  return id;
}

absl::StatusOr<TransferId> TransferId::FromHex(std::string_view hex) {
  if (hex.size() != 32 ||
      hex.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
    return absl::InvalidArgumentError("transfer id: want 32 hex digits");
  }
  return FromBytes(absl::HexStringToBytes(ToAbsl(hex)));
}

absl::StatusOr<TransferId> TransferId::FromBytes(std::string_view raw) {
  TransferId id;
  if (raw.size() != id.bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("transfer id: want 16 bytes, got ", raw.size()));
  }
  std::memcpy(id.bytes.data(), raw.data(), raw.size());
  return id;
}

std::string TransferId::ToHex() const { return absl::BytesToHexString(ToBytes()); }

std::string TransferId::ToBytes() const {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::uint64_t RandomId64() {
  std::uint64_t id = 0;
  while (id == 0) FillRandom(&id, sizeof(id));
  return id;
}

}  // namespace kvferry
