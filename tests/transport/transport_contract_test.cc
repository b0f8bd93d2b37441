#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/wait_limit.h"
#include "tests/transport/recording_sink.h"
#include "transport/loopback/loopback_transport.h"
#include "transport/ucx/ucx_transport.h"

// What transport.h promises, for every implementation.
namespace kvferry::transport {
namespace {

constexpr std::size_t kRegionBytes = 16 << 20;
constexpr std::uint64_t kIncarnationA = 0xaaaa, kIncarnationB = 0xbbbb;

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Makes transports that can reach each other.
class Maker {
 public:
  virtual ~Maker() = default;
  virtual absl::StatusOr<std::unique_ptr<Transport>> Make(std::uint64_t incarnation,
                                                          MessageSink* sink) = 0;
};

class LoopbackMaker : public Maker {
 public:
  absl::StatusOr<std::unique_ptr<Transport>> Make(std::uint64_t incarnation,
                                                  MessageSink* sink) override {
    return network_->CreateTransport({.incarnation = incarnation}, sink, Clock::Steady());
  }

 private:
  std::unique_ptr<LoopbackNetwork> network_ = LoopbackNetwork::Create();
};

class UcxMaker : public Maker {
 public:
  absl::StatusOr<std::unique_ptr<Transport>> Make(std::uint64_t incarnation,
                                                  MessageSink* sink) override {
    UcxOptions options;
    options.incarnation = incarnation;
    return CreateUcxTransport(options, sink, Clock::Steady());
  }
};

class TransportContract : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    maker_ = GetParam() == "loopback" ? std::unique_ptr<Maker>(new LoopbackMaker())
                                      : std::make_unique<UcxMaker>();
    auto a = maker_->Make(kIncarnationA, &sink_a_);
    ASSERT_TRUE(a.ok()) << a.status();
    a_ = *std::move(a);
    auto b = maker_->Make(kIncarnationB, &sink_b_);
    ASSERT_TRUE(b.ok()) << b.status();
    b_ = *std::move(b);
    region_a_ = *a_->Allocate(kRegionBytes, MemoryKind::kHost);
    region_b_ = *b_->Allocate(kRegionBytes, MemoryKind::kHost);
    sink_b_.LandIn(region_b_->bytes());
    to_b_ = *a_->Connect(b_->LocalAddress(), kIncarnationB, "b");
    to_a_ = *b_->Connect(a_->LocalAddress(), kIncarnationA, "a");
    // A peer that is gone while the other one connects back to it crashes UCX 1.22: it frees the
    // TCP connection under the new endpoint when its request cannot be sent (uct_tcp_ep_connect).
    Greet(*a_, to_b_, sink_b_, to_a_);
    Greet(*b_, to_a_, sink_a_, to_b_);
  }
  // Until `sink` knows where a message of `from` comes from.
  static void Greet(Transport& from, PeerHandle to, RecordingSink& sink, PeerHandle known_as) {
    for (std::size_t sent = 1; sent <= 1000; ++sent) {
      from.Send(to, MessageType::kAck, Bytes("hello"), {}, [](const absl::Status&) {});
      const auto messages = sink.AwaitMessages(sent);
      ASSERT_TRUE(messages.has_value());
      if (messages->back().from != known_as) continue;
      sink.ForgetMessages();
      return;
    }
    FAIL() << "still a stranger";
  }
  void TearDown() override {
    if (a_ != nullptr) a_->Stop();
    if (b_ != nullptr) b_->Stop();
    region_a_.reset();
    region_b_.reset();
  }

  // Sends and waits for `done`.
  absl::Status Send(PeerHandle to, MessageType type, const std::string& header,
                    std::size_t payload_bytes) {
    auto done = std::make_shared<std::promise<absl::Status>>();
    a_->Send(to, type, Bytes(header), region_a_->bytes().first(payload_bytes),
             [done](const absl::Status& s) { done->set_value(s); });
    std::future<absl::Status> result = done->get_future();
    if (result.wait_for(absl::ToChronoSeconds(fakes::kWaitLimit)) != std::future_status::ready)
      return absl::DeadlineExceededError("done was not called");
    return result.get();
  }

  RecordingSink sink_a_, sink_b_;
  std::unique_ptr<Maker> maker_;
  std::unique_ptr<Transport> a_, b_;
  std::unique_ptr<Region> region_a_, region_b_;
  PeerHandle to_b_{}, to_a_{};
};

TEST_P(TransportContract, MessagesCarryHeaderPayloadAndSender) {
  const std::size_t sizes[] = {0, 1, 63, 4096, (16 << 10) - 1, 16 << 10, (1 << 20) + 1, 8 << 20};
  std::size_t count = 0;
  for (const std::size_t size : sizes) {
    for (std::size_t i = 0; i < size; ++i)
      region_a_->bytes()[i] = static_cast<std::byte>(i * 31 + size);
    const std::string header = absl::StrCat("header of ", size);
    ASSERT_TRUE(Send(to_b_, MessageType::kChunk, header, size).ok());
    const auto messages = sink_b_.AwaitMessages(++count);
    ASSERT_TRUE(messages.has_value()) << size;
    const RecordingSink::Message& message = messages->back();
    EXPECT_EQ(message.from, to_a_);
    EXPECT_EQ(message.type, MessageType::kChunk);
    EXPECT_EQ(message.header, header);
    ASSERT_EQ(message.payload.size(), size);
    EXPECT_TRUE(std::equal(message.payload.begin(), message.payload.end(),
                           reinterpret_cast<const char*>(region_a_->bytes().data())));
  }
}

TEST_P(TransportContract, EveryTypeArrivesAsItself) {
  std::size_t count = 0;
  for (const MessageType type :
       {MessageType::kAck, MessageType::kNack, MessageType::kCommit, MessageType::kAdopted,
        MessageType::kAbort, MessageType::kAbortAck}) {
    ASSERT_TRUE(Send(to_b_, type, "x", 0).ok());
    const auto messages = sink_b_.AwaitMessages(++count);
    ASSERT_TRUE(messages.has_value());
    EXPECT_EQ(messages->back().type, type);
  }
}

TEST_P(TransportContract, ARefusedPayloadIsDiscardedAndTheNextOneArrives) {
  sink_b_.RefuseAll();
  for (const std::size_t size : {std::size_t{100}, std::size_t{2} << 20})
    Send(to_b_, MessageType::kChunk, "no", size).IgnoreError();
  ASSERT_TRUE(sink_b_.AwaitRefused(2));
  sink_b_.LandIn(region_b_->bytes());
  ASSERT_TRUE(Send(to_b_, MessageType::kChunk, "yes", 2 << 20).ok());
  const auto messages = sink_b_.AwaitMessages(1);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->front().header, "yes");
}

TEST_P(TransportContract, ManyMessagesInFlightAllArrive) {
  constexpr int kMessages = 200;
  std::atomic<int> done = 0;
  for (int i = 0; i < kMessages; ++i) {
    a_->Send(to_b_, MessageType::kChunk, Bytes(absl::StrCat(i)),
             region_a_->bytes().first(i % 3 == 0 ? 100000 : 10),
             [&done](const absl::Status& status) { done += status.ok() ? 1 : 0; });
  }
  const auto messages = sink_b_.AwaitMessages(kMessages);
  ASSERT_TRUE(messages.has_value());
  std::set<std::string> headers;
  for (const auto& message : *messages) headers.insert(message.header);
  EXPECT_EQ(headers.size(), static_cast<std::size_t>(kMessages));
  a_->Stop();
  EXPECT_EQ(done, kMessages);
}

TEST_P(TransportContract, BothDirectionsWork) {
  sink_a_.LandIn(region_a_->bytes().subspan(8 << 20));
  auto done = std::make_shared<absl::Notification>();
  b_->Send(to_a_, MessageType::kChunk, Bytes("back"), region_b_->bytes().first(1 << 20),
           [done](const absl::Status&) { done->Notify(); });
  ASSERT_TRUE(Send(to_b_, MessageType::kChunk, "forth", 1 << 20).ok());
  EXPECT_TRUE(sink_a_.AwaitMessages(1).has_value());
  EXPECT_TRUE(sink_b_.AwaitMessages(1).has_value());
  EXPECT_TRUE(done->WaitForNotificationWithTimeout(fakes::kWaitLimit));
}

TEST_P(TransportContract, DisconnectReportsThePeerOnceAndSendsThenFail) {
  ASSERT_TRUE(Send(to_b_, MessageType::kAck, "x", 0).ok());
  a_->Disconnect(to_b_);
  const auto lost = sink_a_.AwaitLost(to_b_);
  ASSERT_TRUE(lost.has_value());
  EXPECT_EQ(lost->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Send(to_b_, MessageType::kAck, "x", 0).code(), absl::StatusCode::kUnavailable);
}

TEST_P(TransportContract, AStoppedPeerIsLostWithinTwoSeconds) {
  ASSERT_TRUE(Send(to_b_, MessageType::kAck, "x", 0).ok());
  const absl::Time begin = absl::Now();
  b_->Stop();
  const auto lost = sink_a_.AwaitLost(to_b_);
  ASSERT_TRUE(lost.has_value());
  EXPECT_EQ(lost->code(), absl::StatusCode::kUnavailable) << *lost;
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
}

TEST_P(TransportContract, ALostPeerCanBeConnectedAgain) {
  a_->Disconnect(to_b_);
  b_->Disconnect(to_a_);
  ASSERT_TRUE(sink_a_.AwaitLost(to_b_).has_value());
  ASSERT_TRUE(sink_b_.AwaitLost(to_a_).has_value());
  to_b_ = *a_->Connect(b_->LocalAddress(), kIncarnationB, "b");
  to_a_ = *b_->Connect(a_->LocalAddress(), kIncarnationA, "a");
  ASSERT_TRUE(Send(to_b_, MessageType::kChunk, "again", 1 << 20).ok());
  const auto messages = sink_b_.AwaitMessages(1);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->back().from, to_a_);
}

TEST_P(TransportContract, AnUnknownSenderHasNoHandle) {
  RecordingSink sink_c;
  auto c = maker_->Make(0xcccc, &sink_c);
  ASSERT_TRUE(c.ok());
  const PeerHandle to_b = *(*c)->Connect(b_->LocalAddress(), kIncarnationB, "b");
  (*c)->Send(to_b, MessageType::kAck, Bytes("who"), {}, [](const absl::Status&) {});
  const auto messages = sink_b_.AwaitMessages(1);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->back().from, PeerHandle{});
  (*c)->Stop();
}

TEST_P(TransportContract, AddressesOfAnotherKindAreRefused) {
  EXPECT_EQ(a_->Connect("nonsense", 1, "x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(a_->Connect("", 1, "x").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportContract, WorkRunsOnTheProgressThreadInOrderAndNotBeforeItsTime) {
  std::promise<std::vector<int>> promise;
  auto order = std::make_shared<std::vector<int>>();
  a_->Post(
      [order, &promise] {
        order->push_back(3);
        promise.set_value(*order);
      },
      absl::Milliseconds(30));
  a_->Post([order] { order->push_back(1); });
  a_->Post([order] { order->push_back(2); });
  std::future<std::vector<int>> future = promise.get_future();
  ASSERT_EQ(future.wait_for(absl::ToChronoSeconds(fakes::kWaitLimit)), std::future_status::ready);
  EXPECT_THAT(future.get(), ::testing::ElementsAre(1, 2, 3));
}

TEST_P(TransportContract, StopIsIdempotentAndEndsSends) {
  std::atomic<int> done = 0;
  for (int i = 0; i < 20; ++i) {
    a_->Send(to_b_, MessageType::kChunk, Bytes("x"), region_a_->bytes().first(1 << 20),
             [&done](const absl::Status&) { ++done; });
  }
  a_->Stop();
  EXPECT_EQ(done, 20);
  a_->Stop();
}

INSTANTIATE_TEST_SUITE_P(Every, TransportContract, ::testing::Values("loopback", "ucx_tcp"),
                         [](const auto& info) { return info.param; });

TEST(UcxTransport, ARefusedSettingIsAnErrorThatNamesIt) {
  RecordingSink sink;
  UcxOptions options;
  options.settings["NO_SUCH_SETTING"] = "1";
  const auto made = CreateUcxTransport(options, &sink, Clock::Steady());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(made.status().message()), ::testing::HasSubstr("NO_SUCH_SETTING"));
}

}  // namespace
}  // namespace kvferry::transport
