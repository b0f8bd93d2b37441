#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "model/safetensors.h"

// Any bytes may be in a .safetensors file. What is accepted must be readable to the last byte.
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

// A folder of this process, gone at its end.
struct Folder {
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("kvferry_fuzz_" + std::to_string(::getpid()));
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  {
    std::ofstream out(folder.path / "model.safetensors", std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  }
  const auto opened = kvferry::model::SafetensorsFolder::Open(folder.path.string());
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
