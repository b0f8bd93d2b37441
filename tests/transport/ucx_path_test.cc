#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "transport/ucx/address.h"
#include "transport/ucx/path.h"

namespace kvferry::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Labels(const std::vector<Path>& paths) {
  std::vector<std::string> labels;
  for (const Path& path : paths) labels.push_back(path.label);
  return labels;
}

UcxAddress Address(std::uint64_t host, std::uint64_t process, bool device_memory) {
  return {.host = host,
          .process = process,
          .gpu = device_memory ? 100 + process : 0,
          .worker = "worker"};
}

TEST(UcxAddress, ComesBackAsItWas) {
  for (const bool device_memory : {false, true}) {
    UcxAddress address = Address(0x1122334455667788, 0x99aabbccddeeff00, device_memory);
    if (device_memory) address.unreachable = {7, 0x8000000000000001};
    const auto back = UnpackAddress(PackAddress(address));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, address);
  }
}

TEST(UcxAddress, EveryDamagedByteIsNoticed) {
  UcxAddress address = Address(1, 2, true);
  address.unreachable = {3, 4};
  const std::string packed = PackAddress(address);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    std::string damaged = packed;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_EQ(UnpackAddress(damaged).status().code(), absl::StatusCode::kInvalidArgument) << i;
  }
  for (std::size_t size = 0; size < packed.size(); ++size) {
    EXPECT_FALSE(UnpackAddress(packed.substr(0, size)).ok()) << size;
  }
}

TEST(UcxAddress, OfThisProcessIsTheSameTwice) {
  const auto first = LocalUcxAddress(nullptr, "w"), second = LocalUcxAddress(nullptr, "w");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(*first, *second);
  EXPECT_NE(first->host, 0);
}

TEST(UcxPath, DeviceMemoryComesFirst) {
  EXPECT_THAT(Labels(*OfferPaths("tcp", false, "")), ElementsAre("tcp_host"));
  EXPECT_THAT(Labels(*OfferPaths("tcp", true, "")), ElementsAre("cuda_ipc", "tcp_host"));
  EXPECT_THAT(Labels(*OfferPaths("posix,tcp", true, "")), ElementsAre("cuda_ipc", "shm"));
}

TEST(UcxPath, ARequiredOneIsTheOnlyOneOrRefused) {
  EXPECT_THAT(Labels(*OfferPaths("tcp", true, "cuda_ipc")), ElementsAre("cuda_ipc"));
  EXPECT_THAT(Labels(*OfferPaths("tcp", true, "tcp_host")), ElementsAre("tcp_host"));
  const absl::Status missing = OfferPaths("tcp", false, "cuda_ipc").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("but this process has tcp_host"));
}

TEST(UcxPath, CudaIsAddedOnce) {
  EXPECT_EQ(WithCuda("tcp"), "tcp,cuda_copy,cuda_ipc");
  EXPECT_EQ(WithCuda("tcp,cuda_copy,cuda_ipc"), "tcp,cuda_copy,cuda_ipc");
  EXPECT_EQ(WithCuda("all"), "all");
}

TEST(UcxPath, DeviceToDeviceWithinAHostAndBetweenProcesses) {
  const std::vector<Path> paths = *OfferPaths("tcp", true, "");
  const UcxAddress local = Address(1, 10, true);
  EXPECT_EQ(ChoosePath(paths, local, Address(1, 11, true))->label, "cuda_ipc");
  EXPECT_EQ(ChoosePath(paths, local, Address(1, 11, false))->label, "tcp_host");
  EXPECT_EQ(ChoosePath(paths, local, Address(2, 11, true))->label, "tcp_host");
  EXPECT_EQ(ChoosePath(paths, local, local)->label, "tcp_host");
}

TEST(UcxPath, GpusWithoutAccessUseTheHostFromBothSides) {
  const std::vector<Path> paths = *OfferPaths("tcp", true, "");
  UcxAddress knows = Address(1, 10, true);
  const UcxAddress other = Address(1, 11, true);
  knows.unreachable = {5};
  EXPECT_EQ(ChoosePath(paths, knows, other)->label, "cuda_ipc");
  knows.unreachable = {5, other.gpu};
  EXPECT_EQ(ChoosePath(paths, knows, other)->label, "tcp_host");
  EXPECT_EQ(ChoosePath(paths, other, knows)->label, "tcp_host");
  const std::vector<Path> required = *OfferPaths("tcp", true, "cuda_ipc");
  EXPECT_THAT(std::string(ChoosePath(required, knows, other).status().message()),
              HasSubstr("no access"));
}

TEST(UcxPath, WhatIsMissingIsSaid) {
  const std::vector<Path> paths = *OfferPaths("tcp", true, "cuda_ipc");
  const UcxAddress local = Address(1, 10, true);
  const auto why = [&](const UcxAddress& peer) {
    const absl::Status status = ChoosePath(paths, local, peer).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_THAT(why(Address(2, 11, true)), HasSubstr("another host"));
  EXPECT_THAT(why(Address(1, 11, false)), HasSubstr("in host memory"));
  EXPECT_THAT(why(local), HasSubstr("same process"));
}

TEST(UcxPath, LanesWithoutCudaIpcAreRefused) {
  const Path path{MemoryKind::kDevice, "cuda_ipc"};
  EXPECT_TRUE(CheckLanes({"tcp/lo", "cuda_ipc/cuda"}, "peer", path).ok());
  const absl::Status missing = CheckLanes({"tcp/lo", "cuda_copy/cuda"}, "peer", path);
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("only tcp/lo, cuda_copy/cuda"));
  EXPECT_TRUE(CheckLanes({"tcp/lo"}, "peer", {MemoryKind::kHost, "tcp_host"}).ok());
}

}  // namespace
}  // namespace kvferry::transport
