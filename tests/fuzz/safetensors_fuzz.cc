#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "model/safetensors.h"

// Any bytes may be in a .safetensors file. What is accepted must be readable to the last byte.
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

// A folder of this process, gone at its end, whose model.safetensors is in memory.
class Folder {
 public:
  Folder() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    std::filesystem::create_directories(path_);
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(fd_),
                                    path_ / "model.safetensors");
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
    ::close(fd_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void Fill(const std::uint8_t* data, std::size_t size) const {
    Require(::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  const int fd_;
  const std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("kvferry_fuzz_" + std::to_string(::getpid()));
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  folder.Fill(data, size);
  const auto opened = kvferry::model::SafetensorsFolder::Open(folder.path().string());
  if (!opened.ok()) return 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : opened->tensors()) {
    Require(name == tensor.name);
    const auto bytes = kvferry::model::StoredBytes(tensor.type, tensor.shape);
    Require(bytes.has_value() && *bytes == tensor.data.size());
    for (const std::uint8_t byte : tensor.data) sum += byte;
  }
  volatile unsigned keep = sum;
  (void)keep;
  return 0;
}
