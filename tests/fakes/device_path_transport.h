#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "transport/transport.h"

namespace kvferry::fakes {

// The transports of one test that say they have a GPU, and how many payloads they sent from there.
struct DevicePaths {
  std::set<std::string> addresses;
  std::atomic<int> device_payloads = 0;
  std::atomic<int> host_payloads = 0;
};

// `inner` with a device path besides its own, to whoever has one too. Its device memory is host
// memory. Create all of a test's before they connect.
class DevicePathTransport final : public transport::Transport {
 public:
  DevicePathTransport(std::unique_ptr<transport::Transport> inner, DevicePaths& paths)
      : inner_(std::move(inner)), paths_(paths) {
    paths_.addresses.insert(inner_->LocalAddress());
  }
  ~DevicePathTransport() override { inner_->Stop(); }

  std::string LocalAddress() const override { return inner_->LocalAddress(); }
  std::vector<transport::Path> paths() const override {
    std::vector<transport::Path> paths = inner_->paths();
    paths.insert(paths.begin(), {transport::MemoryKind::kDevice, "device"});
    return paths;
  }
  absl::StatusOr<transport::Path> PathTo(std::string_view address) const override {
    if (paths_.addresses.contains(std::string(address))) return paths().front();
    return inner_->PathTo(address);
  }
  absl::StatusOr<std::unique_ptr<transport::Region>> Allocate(
      std::size_t bytes, transport::MemoryKind memory) override {
    auto region = inner_->Allocate(bytes, transport::MemoryKind::kHost);
    if (region.ok() && memory == transport::MemoryKind::kDevice) device_ = (*region)->bytes();
    return region;
  }
  absl::StatusOr<transport::PeerHandle> Connect(std::string_view address,
                                                std::uint64_t peer_incarnation,
                                                std::string_view peer_name) override {
    return inner_->Connect(address, peer_incarnation, peer_name);
  }
  void Send(transport::PeerHandle peer, transport::MessageType type,
            std::span<const std::byte> header, std::span<const std::byte> payload,
            transport::SendDone done) override {
    if (!payload.empty()) {
      const bool on_device =
          payload.data() >= device_.data() && payload.data() < device_.data() + device_.size();
      ++(on_device ? paths_.device_payloads : paths_.host_payloads);
    }
    inner_->Send(peer, type, header, payload, std::move(done));
  }
  void Disconnect(transport::PeerHandle peer) override { inner_->Disconnect(peer); }
  void Post(std::function<void()> work, absl::Duration delay) override {
    inner_->Post(std::move(work), delay);
  }
  void Stop() override { inner_->Stop(); }

 private:
  const std::unique_ptr<transport::Transport> inner_;
  DevicePaths& paths_;
  std::span<std::byte> device_;
};

}  // namespace kvferry::fakes
