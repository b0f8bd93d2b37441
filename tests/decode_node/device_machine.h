#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "decode_node/device_cache_memory.h"
#include "kernels/append_tokens.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"
#include "tests/decode_node/cache_store_fixture.h"

namespace kvferry::decode {

// The first GPU, for tests of what lies there. Without one, Missing says so.
class DeviceMachine {
 public:
  static constexpr std::size_t kSlotBytes = std::size_t{1} << 20;

  DeviceMachine() {
    if (Missing().has_value()) return;
    EXPECT_TRUE(kernels::UseDevice(0).ok());
    stream_.emplace(kernels::Stream::Create().value());
    memory_ = DeviceCacheMemory::Create({.slot_bytes = kSlotBytes, .max_flush_items = 64}, *stream_)
                  .value();
  }

  static std::optional<std::string> Missing() {
    const auto device = kernels::GetDevice(0);
    if (device.ok()) return std::nullopt;
    return std::string(device.status().message());
  }
  CacheMemory& memory() { return *memory_; }
  kernels::Stream& stream() { return *stream_; }

  template <class T>
  kernels::DeviceBuffer Upload(const std::vector<T>& values) {
    auto buffer = kernels::DeviceBuffer::Allocate(values.size() * sizeof(T)).value();
    EXPECT_TRUE(
        kernels::CopyAsync(buffer.data(), values.data(), values.size() * sizeof(T), *stream_).ok());
    EXPECT_TRUE(stream_->Synchronize().ok());
    return buffer;
  }
  template <class T>
  std::vector<T> Download(const T* values, std::size_t count) {
    std::vector<T> out(count);
    EXPECT_TRUE(kernels::CopyAsync(out.data(), values, count * sizeof(T), *stream_).ok());
    EXPECT_TRUE(stream_->Synchronize().ok());
    return out;
  }

  void Put(CacheStore& store, StoredSequence& sequence, const TokenKv& kv) {
    const StoredSequence::DeviceRows rows = sequence.Rows();
    const auto target = Upload(std::vector<kernels::AppendTarget>{
        {.k = rows.new_k, .v = rows.new_v, .head_stride = rows.head_elements}});
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const auto k = Upload(kv.k[layer]), v = Upload(kv.v[layer]);
      const absl::Status status =
          kernels::LaunchAppendTokens({.targets = target.as<const kernels::AppendTarget>(),
                                       .sequences = 1,
                                       .kv_heads = kGeometry.kv_heads,
                                       .head_dim = kGeometry.head_dim,
                                       .layer_offset = store.layer_elements() * layer,
                                       .k = k.as<std::uint16_t>(),
                                       .v = v.as<std::uint16_t>()},
                                      *stream_);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(stream_->Synchronize().ok());
    }
  }

  LayerBytes Read(const CacheStore& store, const StoredSequence& sequence, int layer) {
    const StoredSequence::DeviceRows rows = sequence.Rows();
    const codec::WindowSpec& window = store.codec().window;
    const std::int64_t offset = store.layer_elements() * layer;
    LayerBytes bytes;
    Gather(rows.sinks + offset, window.sinks, 0, rows.sink_tokens, bytes.sink_k, bytes.sink_v);
    Gather(rows.window + offset, codec::WindowCapacity(window), rows.window_begin,
           rows.window_tokens, bytes.window_k, bytes.window_v);
    const std::size_t page_bytes = store.page_bytes()[layer];
    for (const cache::RowIdx row : rows.pages) {
      bytes.pages.push_back(Download(
          store.layer_pages(layer) + page_bytes * static_cast<std::uint32_t>(row), page_bytes));
    }
    return bytes;
  }

 private:
  // `tokens` rows from `begin` on out of [K, V][kv_heads, capacity, head_dim], round about.
  void Gather(const std::uint16_t* from, int capacity, int begin, int tokens,
              std::vector<std::uint16_t>& k, std::vector<std::uint16_t>& v) {
    const std::size_t side = std::size_t{1} * kGeometry.kv_heads * capacity * kGeometry.head_dim;
    const std::vector<std::uint16_t> all = Download(from, 2 * side);
    for (int head = 0; head < kGeometry.kv_heads; ++head) {
      for (int token = 0; token < tokens; ++token) {
        const auto row =
            all.begin() +
            (std::ptrdiff_t{1} * head * capacity + (begin + token) % capacity) * kGeometry.head_dim;
        const auto v_row = row + static_cast<std::ptrdiff_t>(side);
        k.insert(k.end(), row, row + kGeometry.head_dim);
        v.insert(v.end(), v_row, v_row + kGeometry.head_dim);
      }
    }
  }

  std::optional<kernels::Stream> stream_;
  std::unique_ptr<DeviceCacheMemory> memory_;
};

}  // namespace kvferry::decode
