#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/crc32c.h"
#include "gtest/gtest.h"
#include "tests/fakes/wait_limit.h"
#include "tests/transport/landing_sink.h"
#include "tests/transport/peer_process.h"
#include "tests/transport/recording_sink.h"
#include "transport/ucx/ucx_transport.h"

// UCX over TCP between two processes: what transport.h promises when the other one dies, stops, or
// is not a peer at all.
namespace kvferry::transport {
namespace {

std::unique_ptr<Transport> MakeTransport(MessageSink* sink, std::uint64_t incarnation) {
  UcxOptions options;
  options.incarnation = incarnation;
  auto made = CreateUcxTransport(options, sink, Clock::Steady());
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

TEST(UcxProcesses, PayloadsArriveWhole) {
  RecordingSink sink;
  const auto transport = MakeTransport(&sink, kTestIncarnation);
  const auto region = transport->Allocate(kChunkBytes, MemoryKind::kHost).value();
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
  std::mt19937 random(1);
  for (std::size_t i = 0; i + 4 <= kChunkBytes; i += 4) {
    const std::uint32_t value = random();
    std::memcpy(region->bytes().data() + i, &value, 4);
  }
  std::size_t answers = 0;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{4096},
                                 (std::size_t{1} << 20) + 1, kChunkBytes}) {
    const auto payload = region->bytes().first(size);
    transport->Send(to, MessageType::kChunk, {}, payload, [](const absl::Status&) {});
    const auto messages = sink.AwaitMessages(++answers);
    ASSERT_TRUE(messages.has_value()) << size;
    EXPECT_EQ(messages->back().header, absl::StrCat(Crc32c(payload))) << size;
    EXPECT_EQ(messages->back().from, to);
  }
  transport->Stop();
}

// Both directions are busy when the peer gets `signal`.
void LosesABusyPeer(const std::string& role, int signal) {
  LandingSink sink;
  const auto transport = MakeTransport(&sink, kTestIncarnation);
  const auto region = transport->Allocate(5 * kChunkBytes, MemoryKind::kHost).value();
  sink.LandIn(region->bytes().subspan(kChunkBytes));
  const auto peer = PeerProcess::Start(role, transport->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
  if (role == "flood") {
    ASSERT_TRUE(sink.AwaitAccepted(3));
  }
  constexpr int kSends = 16;
  std::atomic<int> done = 0;
  absl::Notification busy;
  for (int i = 0; i < kSends; ++i) {
    transport->Send(to, MessageType::kChunk, {}, region->bytes().first(kChunkBytes),
                    [&](const absl::Status&) {
                      if (++done == 2) busy.Notify();
                    });
  }
  ASSERT_TRUE(busy.WaitForNotificationWithTimeout(fakes::kWaitLimit));
  (*peer)->Signal(signal);
  EXPECT_TRUE(sink.AwaitLost(fakes::kWaitLimit));
  EXPECT_EQ(sink.why().code(), absl::StatusCode::kUnavailable) << sink.why();
  EXPECT_EQ(sink.open_at_loss(), 0);
  EXPECT_EQ(done, kSends);
  // The next one is refused at once, and nothing is reported twice.
  transport->Send(to, MessageType::kAck, {}, {}, [&done](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    ++done;
  });
  transport->Stop();
  EXPECT_EQ(done, kSends + 1);
  EXPECT_EQ(sink.lost(), 1);
}

TEST(UcxProcesses, APeerKilledWhileItReceivesIsLost) { LosesABusyPeer("answer", SIGKILL); }
TEST(UcxProcesses, APeerKilledWhileItSendsIsLost) { LosesABusyPeer("flood", SIGKILL); }
TEST(UcxProcesses, APeerStoppedWhileItReceivesIsLost) { LosesABusyPeer("answer", SIGSTOP); }
TEST(UcxProcesses, APeerStoppedWhileItSendsIsLost) { LosesABusyPeer("flood", SIGSTOP); }

TEST(UcxProcesses, AfterAKilledPeerItsSuccessorIsServed) {
  RecordingSink sink;
  const auto transport = MakeTransport(&sink, kTestIncarnation);
  for (std::size_t round = 1; round <= 3; ++round) {
    const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
    ASSERT_TRUE(peer.ok()) << peer.status();
    const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
    transport->Send(to, MessageType::kAck, {}, {}, [](const absl::Status&) {});
    ASSERT_TRUE(sink.AwaitMessages(round).has_value());
    (*peer)->Signal(SIGKILL);
    ASSERT_TRUE(sink.AwaitLost(to).has_value());
  }
  transport->Stop();
}

// The TCP connections of this process.
std::vector<int> Connections() {
  std::vector<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    sockaddr_in peer{};
    socklen_t size = sizeof(peer);
    const bool connected = getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0;
    if (connected && peer.sin_family == AF_INET) found.push_back(fd);
  }
  return found;
}

TEST(UcxProcesses, APeerIsLostWithEitherOfItsConnections) {
  for (const std::size_t cut : {0, 1}) {
    RecordingSink sink;
    const auto transport = MakeTransport(&sink, kTestIncarnation);
    const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
    ASSERT_TRUE(peer.ok()) << peer.status();
    const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");
    // Where both sides have begun one at once, one of the two is closed again.
    std::vector<int> connections;
    for (std::size_t answers = 1; answers <= 100 && connections.size() != 2; ++answers) {
      transport->Send(to, MessageType::kAck, {}, {}, [](const absl::Status&) {});
      ASSERT_TRUE(sink.AwaitMessages(answers).has_value());
      connections = Connections();
    }
    ASSERT_EQ(connections.size(), 2);
    ASSERT_EQ(shutdown(connections[cut], SHUT_RDWR), 0);
    const auto why = sink.AwaitLost(to);
    ASSERT_TRUE(why.has_value()) << cut;
    EXPECT_EQ(why->code(), absl::StatusCode::kUnavailable) << *why;
    transport->Stop();
  }
}

// The ports that this process listens on, from /proc.
std::vector<sockaddr_in> ListeningPorts() {
  std::set<std::string> inodes;
  for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(fd, error).string();
    if (target.rfind("socket:[", 0) == 0) inodes.insert(target.substr(8, target.size() - 9));
  }
  std::vector<sockaddr_in> ports;
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    std::string number, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    fields >> number >> local >> remote >> state >> queues >> timer >> retransmits >> uid >>
        timeout >> inode;
    if (state != "0A" || !inodes.contains(inode)) continue;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoul(local.substr(9), nullptr, 16)));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const auto bound = static_cast<in_addr_t>(std::stoul(local.substr(0, 8), nullptr, 16));
    if (bound != INADDR_ANY) address.sin_addr.s_addr = bound;
    ports.push_back(address);
  }
  return ports;
}

TEST(UcxProcesses, RandomBytesOnThePortHarmNobody) {
  RecordingSink sink;
  const auto transport = MakeTransport(&sink, kTestIncarnation);
  const std::vector<sockaddr_in> ports = ListeningPorts();
  ASSERT_FALSE(ports.empty());
  const auto peer = PeerProcess::Start("answer", transport->LocalAddress());
  ASSERT_TRUE(peer.ok()) << peer.status();
  const PeerHandle to = *transport->Connect((*peer)->address(), kPeerIncarnation, "peer");

  std::mt19937 random(7);
  std::size_t answers = 0;
  for (const std::size_t size : {0, 1, 7, 8, 9, 64, 1000, 300000}) {
    for (const sockaddr_in& port : ports) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&port), sizeof(port)), 0);
      std::string bytes(size, '\0');
      std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
      // Half of it is often refused by a reset, which is the right answer.
      [[maybe_unused]] const ssize_t sent = send(fd, bytes.data(), size, MSG_NOSIGNAL);
      close(fd);
    }
    transport->Send(to, MessageType::kAck, {}, {}, [](const absl::Status&) {});
    ASSERT_TRUE(sink.AwaitMessages(++answers).has_value()) << size;
  }
  transport->Stop();
}

}  // namespace
}  // namespace kvferry::transport
