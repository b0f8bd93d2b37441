#include "kernels/adopt_chunk.h"

#include <algorithm>
#include <random>

#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "tests/kernels/gpu_blocks.h"

namespace kvferry::kernels {
namespace {

std::vector<std::byte> RandomBytes(std::size_t bytes, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

class AdoptChunkTest : public GpuBlocksTest {
 protected:
  struct Adopted {
    std::vector<std::byte> bytes;  // of the pages, in payload order
    std::uint32_t crc = 0;
  };

  // Scatters `payload` over pages in a pool, which lie in another order and have gaps.
  Adopted Adopt(const std::vector<std::byte>& payload, std::size_t page_bytes) {
    const std::size_t count = (payload.size() + page_bytes - 1) / page_bytes;
    const std::size_t pitch = page_bytes + kGuardBytes;
    const DeviceBuffer slot = Upload(payload);
    const DeviceBuffer pool = Filled(count * pitch);
    std::vector<std::size_t> places(count);
    for (std::size_t i = 0; i < count; ++i) places[i] = i * pitch;
    std::shuffle(places.begin(), places.end(), std::mt19937(3));
    std::vector<std::byte*> pages(count);
    for (std::size_t i = 0; i < count; ++i) pages[i] = pool.data() + places[i];
    const DeviceBuffer list = Upload(pages);
    const DeviceBuffer residue = Upload(std::vector<std::uint32_t>{0});
    AdoptParams params = {
        .part_count = 1, .residues = residue.as<std::uint32_t>(), .tables = tables()};
    params.parts[0] = {.payload = slot.data(),
                       .pages = list.as<std::byte*>(),
                       .bytes = static_cast<std::uint32_t>(payload.size()),
                       .page_bytes = static_cast<std::uint32_t>(page_bytes)};
    const absl::Status status = LaunchAdoptChunk(params, stream());
    EXPECT_TRUE(status.ok()) << status;
    const std::vector<std::byte> all = Download<std::byte>(pool, pool.bytes());
    Adopted adopted;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t bytes = std::min(page_bytes, payload.size() - i * page_bytes);
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(places[i]);
      const auto end = begin + static_cast<std::ptrdiff_t>(bytes);
      adopted.bytes.insert(adopted.bytes.end(), begin, end);
      EXPECT_TRUE(std::all_of(end, begin + static_cast<std::ptrdiff_t>(pitch),
                              [](std::byte byte) { return byte == kFill; }))
          << "a byte behind page " << i << " was written";
    }
    adopted.crc = FinishChunkCheck(Download<std::uint32_t>(residue, 1)[0], payload.size());
    return adopted;
  }
};

TEST_F(AdoptChunkTest, PagesAndChecksumOfAnySize) {
  for (const std::size_t page : {128u, 4864u, 38912u}) {
    for (const std::size_t bytes : {1u, 15u, 16u, 17u, 128u, 511u, 513u, 4096u, 4100u, 32768u,
                                    32769u, 38912u, 5 * 38912u, 1000001u}) {
      const std::vector<std::byte> payload = RandomBytes(bytes, static_cast<std::uint32_t>(bytes));
      const Adopted adopted = Adopt(payload, page);
      ASSERT_TRUE(adopted.bytes == payload) << bytes << " bytes in pages of " << page;
      ASSERT_EQ(adopted.crc, Crc32c(payload)) << bytes << " bytes in pages of " << page;
    }
  }
}

TEST_F(AdoptChunkTest, WhatWasDamagedOnTheWayIsFound) {
  const std::vector<std::byte> payload = RandomBytes(3 * 4864, 8);
  const std::uint32_t right = Crc32c(payload);
  const auto expect_found = [&](const std::vector<std::byte>& damaged, const std::string& what) {
    const Adopted adopted = Adopt(damaged, 4864);
    EXPECT_EQ(adopted.crc, Crc32c(damaged)) << what;
    EXPECT_NE(adopted.crc, right) << what;
  };
  for (std::size_t bit = 0; bit < payload.size() * 8; bit += 997) {
    std::vector<std::byte> damaged = payload;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    expect_found(damaged, "bit " + std::to_string(bit));
  }
  for (std::size_t at = 0; at + 600 < payload.size(); at += 611) {
    for (const std::size_t distance : {1u, 4u, 16u, 64u, 512u}) {
      std::vector<std::byte> damaged = payload;
      if (damaged[at] == damaged[at + distance]) continue;
      std::swap(damaged[at], damaged[at + distance]);
      expect_found(damaged, "bytes " + std::to_string(at) + " and +" + std::to_string(distance));
    }
  }
  std::vector<std::byte> swapped = payload;
  std::swap_ranges(swapped.begin(), swapped.begin() + 4864, swapped.begin() + 4864);
  expect_found(swapped, "two pages");
}

TEST_F(AdoptChunkTest, SeveralPartsMakeOneChunkAndSeveralChunksOneLaunch) {
  // Chunk 0: two layers with pages of different sizes. Chunk 1: one part.
  const std::size_t page[] = {4864, 8960}, count[] = {5, 3};
  const std::vector<std::byte> first = RandomBytes(5 * 4864 + 3 * 8960, 1);
  const std::vector<std::byte> second = RandomBytes(7 * 128, 2);
  const DeviceBuffer slot = Upload(first), other_slot = Upload(second);
  const DeviceBuffer pool = Filled(first.size() + second.size());
  std::vector<std::byte*> pages;
  std::size_t at = 0;
  for (int layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < count[layer]; ++i, at += page[layer]) {
      pages.push_back(pool.data() + at);
    }
  }
  for (int i = 0; i < 7; ++i, at += 128) pages.push_back(pool.data() + at);
  const DeviceBuffer list = Upload(pages);
  const DeviceBuffer residues = Upload(std::vector<std::uint32_t>{0, 0});
  AdoptParams params = {
      .part_count = 3, .residues = residues.as<std::uint32_t>(), .tables = tables()};
  params.parts[0] = {.payload = slot.data(),
                     .pages = list.as<std::byte*>(),
                     .bytes = 5 * 4864,
                     .page_bytes = 4864,
                     .after_units = 3 * 8960 / 16};
  params.parts[1] = {.payload = slot.data() + 5 * 4864,
                     .pages = list.as<std::byte*>() + 5,
                     .bytes = 3 * 8960,
                     .page_bytes = 8960};
  params.parts[2] = {.payload = other_slot.data(),
                     .pages = list.as<std::byte*>() + 8,
                     .bytes = 7 * 128,
                     .page_bytes = 128,
                     .residue = 1};
  ASSERT_TRUE(LaunchAdoptChunk(params, stream()).ok());
  const std::vector<std::byte> got = Download<std::byte>(pool, pool.bytes());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), got.begin()));
  EXPECT_TRUE(std::equal(second.begin(), second.end(),
                         got.begin() + static_cast<std::ptrdiff_t>(first.size())));
  const std::vector<std::uint32_t> sums = Download<std::uint32_t>(residues, 2);
  EXPECT_EQ(FinishChunkCheck(sums[0], first.size()), Crc32c(first));
  EXPECT_EQ(FinishChunkCheck(sums[1], second.size()), Crc32c(second));
}

TEST_F(AdoptChunkTest, WrongShapesAreRefused) {
  const DeviceBuffer memory = Filled(4096);
  AdoptParams good = {.part_count = 1, .residues = memory.as<std::uint32_t>(), .tables = tables()};
  good.parts[0] = {
      .payload = memory.data(), .pages = memory.as<std::byte*>(), .bytes = 128, .page_bytes = 128};
  const auto expect_refused = [&](const auto& change) {
    AdoptParams params = good;
    change(params, params.parts[0]);
    EXPECT_EQ(LaunchAdoptChunk(params, stream()).code(), absl::StatusCode::kInvalidArgument);
  };
  expect_refused([](AdoptParams& params, AdoptPart&) { params.part_count = kMaxAdoptParts + 1; });
  expect_refused([](AdoptParams& params, AdoptPart&) { params.residues = nullptr; });
  expect_refused([](AdoptParams& params, AdoptPart&) { params.tables = nullptr; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.payload = nullptr; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.payload += 8; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.page_bytes = 24; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.page_bytes = 0; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.bytes = 0; });
  expect_refused([](AdoptParams&, AdoptPart& part) { part.after_units = 0xffffffffu; });
  AdoptParams nothing = good;
  nothing.part_count = 0;
  EXPECT_TRUE(LaunchAdoptChunk(nothing, stream()).ok());
}

}  // namespace
}  // namespace kvferry::kernels
