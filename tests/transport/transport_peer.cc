#include <unistd.h>

#include <array>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "tests/transport/peer_process.h"
#include "transport/ucx/ucx_transport.h"
#if KVFERRY_CUDA
#include "kernels/cuda/device_memory.h"
#endif

// The other process of ucx_process_test and ucx_gpu_test: transport_peer answer|flood ADDRESS_HEX
// [GPU] (see peer_process.h).
namespace kvferry::transport {
namespace {

constexpr std::size_t kChunkBytes = 8 << 20;

// Lands one payload at a time, and answers each with its checksum.
class AnsweringSink : public MessageSink {
 public:
  void Use(Transport* transport, DeviceMemory* device, std::span<std::byte> slot) {
    transport_ = transport;
    device_ = device;
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
    if (!status.ok()) return;
    std::vector<std::byte> payload(cookie);
    if (device_ != nullptr) {
      if (!device_->Copy(payload.data(), slot_.data(), cookie).ok()) return;
    } else {
      std::memcpy(payload.data(), slot_.data(), cookie);
    }
    Answer(from, payload);
  }
  void OnPeerLost(PeerHandle, const absl::Status&) override {}

 private:
  void Answer(PeerHandle to, std::span<const std::byte> payload) {
    const std::string text = absl::StrCat(Crc32c(payload));
    transport_->Send(to, MessageType::kAck, std::as_bytes(std::span(text)), {},
                     [](const absl::Status&) {});
  }
  Transport* transport_ = nullptr;
  DeviceMemory* device_ = nullptr;
  std::span<std::byte> slot_;
};

// Four chunks in flight, for ever.
void Flood(Transport& transport, PeerHandle to, std::span<const std::byte> payload) {
  static constexpr std::array<std::byte, 8> kHeader{};
  transport.Send(to, MessageType::kChunk, kHeader, payload,
                 [&transport, to, payload](const absl::Status& status) {
                   if (status.ok()) Flood(transport, to, payload);
                 });
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> OpenGpu(const std::string& gpu) {
  if (gpu.empty()) return nullptr;
#if KVFERRY_CUDA
  return kernels::CreateDeviceMemory(std::stoi(gpu));
#else
  return absl::UnimplementedError("built without CUDA");
#endif
}

int Run(const std::string& role, const std::string& address, const std::string& gpu) {
  AnsweringSink sink;
  const absl::StatusOr<std::unique_ptr<DeviceMemory>> device = OpenGpu(gpu);
  if (!device.ok()) {
    std::cerr << device.status() << '\n';
    return 1;
  }
  UcxOptions options;
  options.device = device->get();
  options.incarnation = kPeerIncarnation;
  const auto made = CreateUcxTransport(options, &sink, Clock::Steady());
  if (!made.ok()) {
    std::cerr << made.status() << '\n';
    return 1;
  }
  Transport& transport = **made;
  const std::unique_ptr<Region> region =
      transport.Allocate(kChunkBytes, transport.paths().front().memory).value();
  sink.Use(&transport, options.device, region->bytes());
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
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: transport_peer answer|flood ADDRESS_HEX [GPU]\n";
    return 2;
  }
  return kvferry::transport::Run(argv[1], absl::HexStringToBytes(argv[2]),
                                 argc == 4 ? argv[3] : "");
}
