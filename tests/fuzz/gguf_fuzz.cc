#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "model/config_reader.h"
#include "model/dequantize.h"
#include "model/gguf.h"

// Any bytes may be in a .gguf file. What is accepted must be readable to the last byte.
namespace {

using kvferry::model::GgufFile;
using kvferry::model::StoredTensor;

void Require(bool condition) {
  if (!condition) std::abort();
}

void ReadAll(const GgufFile& file) {
  (void)kvferry::model::ReadGgufConfig(file).ok();
  for (const char* key : {"a", "general.alignment", "tokenizer.ggml.tokens"}) {
    (void)file.Int(key).ok();
    (void)file.Float(key).ok();
    (void)file.Bool(key).ok();
    (void)file.String(key).ok();
    (void)file.Ints(key).ok();
    (void)file.Floats(key).ok();
    (void)file.Strings(key).ok();
  }
  for (const StoredTensor& tensor : file.tensors()) {
    Require(file.FindTensor(tensor.name) == &tensor);
    const auto size = kvferry::model::StoredBytes(tensor.type, tensor.shape);
    Require(size.has_value() && *size == tensor.data.size());
    const auto info = kvferry::model::Describe(tensor.type);
    std::vector<float> values(tensor.data.size() / static_cast<std::size_t>(info.block_bytes) *
                              static_cast<std::size_t>(info.block_values));
    kvferry::model::Dequantize(tensor.type, tensor.data, values.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  Require(fd >= 0 && ::write(fd, data, size) == static_cast<ssize_t>(size));
  const auto file = GgufFile::Open("/proc/self/fd/" + std::to_string(fd));
  if (file.ok()) ReadAll(*file);
  ::close(fd);
  return 0;
}
