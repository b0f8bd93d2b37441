#include <csignal>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/crc32c.h"
#include "gtest/gtest.h"
#include "tests/fakes/wait_limit.h"
#include "tests/integration/test_network.h"
#include "tests/model/temp_folder.h"
#include "tests/transport/landing_sink.h"
#include "tests/transport/peer_process.h"
#include "tests/transport/recording_sink.h"
#include "transport/ucx/ucx_transport.h"

// UCX over a link on which one chunk takes several times as long as a peer may be silent.
namespace kvferry::transport {
namespace {

const absl::Duration kPatience = 4 * fakes::kWaitLimit;
constexpr int kMegabitsPerS = 8;

class SlowLink : public ::testing::Test {
 protected:
  void SetUp() override {
    auto network = testing::TestNetwork::Create(folder_.path());
    if (absl::IsPermissionDenied(network.status())) GTEST_SKIP() << network.status().message();
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    ASSERT_TRUE(network_->AddHost("test").ok());
    ASSERT_TRUE(network_->AddHost("peer").ok());
  }
  std::unique_ptr<Transport> MakeTransport(MessageSink* sink) const {
    UcxOptions options;
    options.incarnation = kTestIncarnation;
    absl::StatusOr<std::unique_ptr<Transport>> made;
    EXPECT_TRUE(
        network_
            ->RunOnHost("test", [&] { made = CreateUcxTransport(options, sink, Clock::Steady()); })
            .ok());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  // On the other side of the link.
  std::unique_ptr<PeerProcess> StartPeer(const std::string& role, const Transport& transport) {
    auto peer = PeerProcess::Start(role, transport.LocalAddress(),
                                   {.on_host = network_->OnHost("peer", {})});
    EXPECT_TRUE(peer.ok()) << peer.status();
    return peer.ok() ? *std::move(peer) : nullptr;
  }

  // A peer that sends chunks without end over the slow link, and who receives them.
  struct Flood {
    LandingSink sink;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Region> region;
    std::unique_ptr<PeerProcess> peer;
  };
  void StartFlood(Flood& flood) {
    flood.transport = MakeTransport(&flood.sink);
    flood.region = flood.transport->Allocate(4 * kChunkBytes, MemoryKind::kHost).value();
    flood.sink.LandIn(flood.region->bytes());
    ASSERT_TRUE(network_->ShapeLink("peer", kMegabitsPerS).ok());
    flood.peer = StartPeer("flood", *flood.transport);
    ASSERT_NE(flood.peer, nullptr);
    ASSERT_TRUE(flood.transport->Connect(flood.peer->address(), kPeerIncarnation, "peer").ok());
  }

  const model::TempFolder folder_;
  std::unique_ptr<testing::TestNetwork> network_;
};

TEST_F(SlowLink, APeerThatReceivesAChunkForLongIsKept) {
  RecordingSink sink;
  const auto transport = MakeTransport(&sink);
  const auto region = transport->Allocate(kChunkBytes, MemoryKind::kHost).value();
  const auto peer = StartPeer("answer", *transport);
  ASSERT_NE(peer, nullptr);
  const PeerHandle to = *transport->Connect(peer->address(), kPeerIncarnation, "peer");
  ASSERT_TRUE(network_->ShapeLink("peer", kMegabitsPerS).ok());
  transport->Send(to, MessageType::kChunk, {}, region->bytes(), [](const absl::Status&) {});
  const auto messages = sink.AwaitMessages(1, kPatience);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->back().header, absl::StrCat(Crc32c(region->bytes())));
  EXPECT_FALSE(sink.AwaitLost(to, absl::ZeroDuration()).has_value());
  transport->Stop();
}

TEST_F(SlowLink, APeerThatSendsAChunkForLongIsKept) {
  Flood flood;
  StartFlood(flood);
  if (HasFatalFailure()) return;
  EXPECT_TRUE(flood.sink.AwaitEnded(1, kPatience));
  EXPECT_EQ(flood.sink.failed(), 0);
  EXPECT_EQ(flood.sink.lost(), 0) << flood.sink.why();
  flood.transport->Stop();
}

// No less than on a fast link: what makes up for its slowness must not keep the dead.
TEST_F(SlowLink, APeerThatStopsInAChunkIsLost) {
  Flood flood;
  StartFlood(flood);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(flood.sink.AwaitAccepted(1));
  flood.peer->Signal(SIGSTOP);
  EXPECT_TRUE(flood.sink.AwaitLost(kPatience));
  EXPECT_EQ(flood.sink.why().code(), absl::StatusCode::kUnavailable) << flood.sink.why();
  EXPECT_EQ(flood.sink.open_at_loss(), 0);
  flood.transport->Stop();
}

}  // namespace
}  // namespace kvferry::transport
