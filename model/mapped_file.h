#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace kvferry::model {

// A file mapped read-only. Move-only; views into it die with it. The file must not shrink while it
// is mapped. Thread: any.
class MappedFile {
 public:
  // kNotFound: no such file. kInvalidArgument: not a regular file. kDataLoss: empty.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }
  std::span<const std::uint8_t> bytes() const { return bytes_; }

 private:
  MappedFile(std::string path, std::span<const std::uint8_t> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<const std::uint8_t> bytes_;
};

}  // namespace kvferry::model
