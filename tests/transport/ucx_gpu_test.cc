#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_memory.h"
#include "tests/fakes/wait_limit.h"
#include "tests/transport/landing_sink.h"
#include "tests/transport/peer_process.h"
#include "tests/transport/recording_sink.h"
#include "transport/ucx/ucx_transport.h"

// Payloads from GPU to GPU between two processes: what transport.h promises, over cuda_ipc. With
// one GPU both sides use it.
namespace kvferry::transport {
namespace {

constexpr int kOwnGpu = 0;

class UcxGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = kernels::CreateDeviceMemory(kOwnGpu);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *std::move(device);
    peer_gpu_ = kernels::DeviceCount() - 1;
  }

  std::unique_ptr<Transport> Make(MessageSink* sink, const std::string& required = "cuda_ipc") {
    UcxOptions options;
    options.incarnation = kTestIncarnation;
    options.device = device_.get();
    options.required = required;
    auto made = CreateUcxTransport(options, sink, Clock::Steady());
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }

  std::unique_ptr<DeviceMemory> device_;
  int peer_gpu_ = 0;
};

TEST_F(UcxGpu, PayloadsArriveWhole) {
  RecordingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  const auto region = transport->Allocate(kChunkBytes, MemoryKind::kDevice);
  ASSERT_TRUE(region.ok()) << region.status();
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress(), {.gpu = peer_gpu_});
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ(transport->PathTo((*peer)->address())->label, "cuda_ipc");
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
  std::vector<std::byte> values(kChunkBytes);
  std::mt19937 random(1);
  for (std::size_t i = 0; i + 4 <= kChunkBytes; i += 4) {
    const std::uint32_t value = random();
    std::memcpy(values.data() + i, &value, 4);
  }
  ASSERT_TRUE(device_->Copy((*region)->bytes().data(), values.data(), kChunkBytes).ok());
  std::size_t answers = 0;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{4096},
                                 (std::size_t{1} << 20) + 1, kChunkBytes}) {
    transport->Send(to, MessageType::kChunk, {}, (*region)->bytes().first(size),
                    [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
    const auto messages = sink.AwaitMessages(++answers);
    ASSERT_TRUE(messages.has_value()) << size;
    EXPECT_EQ(messages->back().header, absl::StrCat(Crc32c(std::span(values).first(size)))) << size;
    EXPECT_EQ(messages->back().from, to);
  }
  transport->Stop();
}

TEST_F(UcxGpu, ARefusedPayloadEndsItsSend) {
  RecordingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  const auto region = *transport->Allocate(2 * kChunkBytes, MemoryKind::kDevice);
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress(), {.gpu = peer_gpu_});
  ASSERT_TRUE(peer.ok()) << peer.status();
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
  absl::Notification done;
  transport->Send(to, MessageType::kChunk, {}, region->bytes(),  // more than the peer has room for
                  [&](const absl::Status&) { done.Notify(); });
  EXPECT_TRUE(done.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  transport->Send(to, MessageType::kChunk, {}, region->bytes().first(4096),
                  [](const absl::Status&) {});
  EXPECT_TRUE(sink.AwaitMessages(1).has_value());
  transport->Stop();
}

// `end` is called while both directions are busy: then everything ends, each once.
template <typename End>
void LosesABusyPeer(Transport& transport, LandingSink& sink, DeviceMemory& device, int peer_gpu,
                    const std::string& role, End end) {
  const auto region = *transport.Allocate(5 * kChunkBytes, MemoryKind::kDevice);
  sink.LandIn(region->bytes().subspan(kChunkBytes));
  const auto peer = PeerProcess::Start(role, transport.LocalAddress(), {.gpu = peer_gpu});
  ASSERT_TRUE(peer.ok()) << peer.status();
  const PeerHandle to = *transport.Connect((*peer)->address(), kPeerIncarnation, "peer");
  if (role == "flood") {
    ASSERT_TRUE(sink.AwaitAccepted(3));
  }
  constexpr int kSends = 16;
  std::atomic<int> done = 0;
  absl::Notification busy;
  for (int i = 0; i < kSends; ++i) {
    transport.Send(to, MessageType::kChunk, {}, region->bytes().first(kChunkBytes),
                   [&](const absl::Status&) {
                     if (++done == 2) busy.Notify();
                   });
  }
  ASSERT_TRUE(busy.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  end(**peer, to);
  EXPECT_TRUE(sink.AwaitLost(fakes::kWaitLimit));
  EXPECT_EQ(sink.open_at_loss(), 0);
  EXPECT_EQ(done, kSends);
  transport.Stop();
  EXPECT_EQ(sink.lost(), 1);
  // The GPU has taken no harm: its memory is read and written as before.
  std::array<std::byte, 4> word{};
  EXPECT_TRUE(device.Copy(word.data(), region->bytes().data(), word.size()).ok());
}

TEST_F(UcxGpu, APeerKilledWhileItReceivesIsLost) {
  LandingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  LosesABusyPeer(*transport, sink, *device_, peer_gpu_, "answer",
                 [](PeerProcess& peer, PeerHandle) { peer.Signal(SIGKILL); });
  EXPECT_EQ(sink.why().code(), absl::StatusCode::kUnavailable) << sink.why();
}

TEST_F(UcxGpu, APeerKilledWhileItSendsIsLost) {
  LandingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  LosesABusyPeer(*transport, sink, *device_, peer_gpu_, "flood",
                 [](PeerProcess& peer, PeerHandle) { peer.Signal(SIGKILL); });
  EXPECT_EQ(sink.why().code(), absl::StatusCode::kUnavailable) << sink.why();
}

TEST_F(UcxGpu, APeerStoppedWhileItSendsIsLost) {
  LandingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  LosesABusyPeer(*transport, sink, *device_, peer_gpu_, "flood",
                 [](PeerProcess& peer, PeerHandle) { peer.Signal(SIGSTOP); });
  EXPECT_EQ(sink.why().code(), absl::StatusCode::kUnavailable) << sink.why();
}

TEST_F(UcxGpu, ADisconnectAmidPayloadsEndsThem) {
  LandingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  LosesABusyPeer(*transport, sink, *device_, peer_gpu_, "flood",
                 [&](PeerProcess&, PeerHandle to) { transport->Disconnect(to); });
  EXPECT_EQ(sink.why().code(), absl::StatusCode::kCancelled) << sink.why();
}

TEST_F(UcxGpu, APeerWithoutAGpuIsServedFromHostMemory) {
  RecordingSink sink;
  const auto transport = Make(&sink, "");
  ASSERT_NE(transport, nullptr);
  const auto region = *transport->Allocate(kChunkBytes, MemoryKind::kHost);
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ(transport->PathTo((*peer)->address())->label, "tcp_host");
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
  std::memset(region->bytes().data(), 0x5a, kChunkBytes);
  transport->Send(to, MessageType::kChunk, {}, region->bytes(), [](const absl::Status&) {});
  const auto messages = sink.AwaitMessages(1);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->back().header, absl::StrCat(Crc32c(region->bytes())));
  transport->Stop();
}

TEST_F(UcxGpu, ARequiredPathThatIsMissingIsNamed) {
  RecordingSink sink;
  const auto transport = Make(&sink);
  ASSERT_NE(transport, nullptr);
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  const absl::Status missing =
      transport->Connect((*peer)->address(), kPeerIncarnation, "peer").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()), ::testing::HasSubstr("in host memory"));
  EXPECT_EQ(transport->Allocate(4096, MemoryKind::kHost).status().code(),
            absl::StatusCode::kFailedPrecondition);
  transport->Stop();
}

}  // namespace
}  // namespace kvferry::transport
