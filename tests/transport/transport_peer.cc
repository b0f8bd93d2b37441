#include <unistd.h>

#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "tests/transport/peer_process.h"
#include "transport/ucx/ucx_transport.h"

// The other process of ucx_process_test: transport_peer answer|flood ADDRESS_HEX (see
// peer_process.h).
namespace kvferry::transport {
namespace {

constexpr std::size_t kChunkBytes = 8 << 20;

// Lands one payload at a time, and answers each with its checksum.
class AnsweringSink : public MessageSink {
 public:
  void Use(Transport* transport, std::span<std::byte> slot) {
    transport_ = transport;
    slot_ = slot;
  }
  void OnMessage(PeerHandle from, MessageType, std::span<const std::byte>) override {
    Answer(from, {});
  }
  Landing OnIncoming(PeerHandle, MessageType, std::span<const std::byte>,
                     std::size_t payload_bytes) override {
    if (payload_bytes > slot_.size()) return {};
    return {slot_, payload_bytes};
  }
  void OnPayload(PeerHandle from, std::uint64_t cookie, const absl::Status& status) override {
    if (status.ok()) Answer(from, slot_.first(cookie));
  }
  void OnPeerLost(PeerHandle, const absl::Status&) override {}

 private:
  void Answer(PeerHandle to, std::span<const std::byte> payload) {
    const std::string text = absl::StrCat(Crc32c(payload));
    transport_->Send(to, MessageType::kAck, std::as_bytes(std::span(text)), {},
                     [](const absl::Status&) {});
  }
  Transport* transport_ = nullptr;
  std::span<std::byte> slot_;
};

// Four chunks in flight, for ever.
void Flood(Transport& transport, PeerHandle to, std::span<const std::byte> payload) {
  transport.Send(to, MessageType::kChunk, payload.first(8), payload,
                 [&transport, to, payload](const absl::Status& status) {
                   if (status.ok()) Flood(transport, to, payload);
                 });
}

int Run(const std::string& role, const std::string& address) {
  AnsweringSink sink;
  UcxOptions options;
  options.incarnation = kPeerIncarnation;
  const auto made = CreateUcxTransport(options, &sink, Clock::Steady());
  if (!made.ok()) {
    std::cerr << made.status() << '\n';
    return 1;
  }
  Transport& transport = **made;
  const std::unique_ptr<Region> region = transport.Allocate(kChunkBytes).value();
  sink.Use(&transport, region->bytes());
  const PeerHandle test = transport.Connect(address, kTestIncarnation, "test").value();
  std::cout << absl::BytesToHexString(transport.LocalAddress()) << std::endl;
  if (role == "flood") {
    for (int i = 0; i < 4; ++i) Flood(transport, test, region->bytes());
  }
  char c = 0;
  while (read(STDIN_FILENO, &c, 1) > 0) {
  }
  transport.Stop();
  return 0;
}

}  // namespace
}  // namespace kvferry::transport

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: transport_peer answer|flood ADDRESS_HEX\n";
    return 2;
  }
  return kvferry::transport::Run(argv[1], absl::HexStringToBytes(argv[2]));
}
