#include "transport/loopback/loopback_transport.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "common/work_queue.h"
#include "transport/pending_done.h"

namespace kvferry::transport {
namespace {

constexpr absl::Duration kReorderDelay = absl::Milliseconds(5);

absl::Status CheckAddress(std::string_view address) {
  if (address.substr(0, 9) == "loopback:") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("data address '", ToAbsl(address), "' is not of a loopback transport"));
}

// A message on its way. The payload is a copy: what the sender does to its memory later is not
// seen.
struct Parcel {
  std::uint64_t sender_incarnation = 0;
  MessageType type{};
  std::vector<std::byte> header;
  std::vector<std::byte> payload;
};

class LoopbackTransport;

// The cables: who is reachable by which address, and what goes wrong on the way.
class Network : public LoopbackNetwork, public std::enable_shared_from_this<Network> {
 public:
  void SetFaults(const LoopbackFaults& faults) override {
    const absl::MutexLock lock(&mutex_);
    faults_ = faults;
    random_.seed(faults.seed);
  }
  void Partition(std::string_view a, std::string_view b, bool cut) override {
    const absl::MutexLock lock(&mutex_);
    for (const auto& pair : {std::make_pair(std::string(a), std::string(b)),
                             std::make_pair(std::string(b), std::string(a))}) {
      cut ? void(cuts_.insert(pair)) : void(cuts_.erase(pair));
    }
  }
  absl::StatusOr<std::unique_ptr<Transport>> CreateTransport(const Options& options,
                                                             MessageSink* sink,
                                                             const Clock& clock) override;

  void Attach(const std::string& address, LoopbackTransport* transport) {
    const absl::MutexLock lock(&mutex_);
    transports_[address] = transport;
  }
  void Detach(const std::string& address) {
    const absl::MutexLock lock(&mutex_);
    transports_.erase(address);
  }
  bool Reachable(const std::string& address) {
    const absl::MutexLock lock(&mutex_);
    return transports_.contains(address);
  }
  void Carry(const std::string& from, const std::string& to, Parcel parcel);

 private:
  bool Happens(double probability) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return probability > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < probability;
  }
  void FlipBit(std::vector<std::byte>& bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (bytes.empty()) return;
    const std::size_t bit =
        std::uniform_int_distribution<std::size_t>(0, bytes.size() * 8 - 1)(random_);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }

  absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_){1};
  LoopbackFaults faults_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<std::string, std::string>> cuts_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, LoopbackTransport*> transports_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t next_address_ ABSL_GUARDED_BY(mutex_) = 1;
};

class HeapRegion : public Region {
 public:
  explicit HeapRegion(std::size_t bytes) : bytes_(bytes), memory_(AllocateZeroed(bytes)) {}
  ~HeapRegion() override { std::free(memory_); }
  std::span<std::byte> bytes() const override { return {memory_, bytes_}; }

 private:
  static std::byte* AllocateZeroed(std::size_t bytes) {
    constexpr std::size_t kAlignment = 4096;
    const std::size_t rounded =
        std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (memory == nullptr) std::abort();
    std::memset(memory, 0, rounded);
    return memory;
  }
  std::size_t bytes_;
  std::byte* memory_;
};

// Peers and callbacks belong to the progress thread, as in transport/ucx.
class LoopbackTransport : public Transport {
 public:
  LoopbackTransport(std::shared_ptr<Network> network, std::string address,
                    const LoopbackNetwork::Options& options, MessageSink* sink, const Clock& clock,
                    std::unique_ptr<WorkQueue> work)
      : network_(std::move(network)),
        address_(std::move(address)),
        options_(options),
        sink_(*sink),
        clock_(clock),
        work_(std::move(work)) {}

  void StartThread() {
    network_->Attach(address_, this);
    thread_ = std::thread([this] { Run(); });
    Post([this] { Heartbeat(); }, options_.heartbeat_interval);
  }
  ~LoopbackTransport() override { Stop(); }

  std::string LocalAddress() const override { return address_; }
  std::vector<Path> paths() const override { return {{MemoryKind::kHost, "loopback"}}; }
  absl::StatusOr<Path> PathTo(std::string_view address) const override {
    KVF_RETURN_IF_ERROR(CheckAddress(address));
    return paths().front();
  }
  absl::StatusOr<std::unique_ptr<Region>> Allocate(std::size_t bytes, MemoryKind memory) override {
    if (memory != MemoryKind::kHost)
      return absl::FailedPreconditionError("a loopback transport has host memory alone");
    return std::make_unique<HeapRegion>(bytes);
  }

  absl::StatusOr<PeerHandle> Connect(std::string_view address, std::uint64_t peer_incarnation,
                                     std::string_view peer_name) override {
    KVF_RETURN_IF_ERROR(CheckAddress(address));
    const PeerHandle handle{next_handle_.fetch_add(1)};
    Peer peer{.name = std::string(peer_name),
              .address = std::string(address),
              .incarnation = peer_incarnation,
              .last_heard = clock_.Now()};
    if (OnProgressThread()) {
      OpenPeer(handle, peer);
    } else {
      Post([this, handle, peer] { OpenPeer(handle, peer); });
    }
    return handle;
  }

  void Send(PeerHandle to, MessageType type, std::span<const std::byte> header,
            std::span<const std::byte> payload, SendDone done) override {
    Parcel parcel{.sender_incarnation = options_.incarnation,
                  .type = type,
                  .header = {header.begin(), header.end()}};
    auto ending = std::make_shared<PendingDone>(std::move(done));  // shared: work is copyable
    if (OnProgressThread()) {
      PostSend(to, std::move(parcel), payload, *ending);
      return;
    }
    Post([this, to, parcel = std::move(parcel), payload, ending]() mutable {
      PostSend(to, std::move(parcel), payload, *ending);
    });
  }

  void Disconnect(PeerHandle peer) override {
    Post([this, peer] { Lose(peer, absl::CancelledError("disconnected")); });
  }

  void Post(std::function<void()> work, absl::Duration delay = absl::ZeroDuration()) override {
    work_->Push(std::move(work), delay);
  }

  void Stop() override {
    if (!thread_.joinable()) return;
    network_->Detach(address_);
    Post([this] { stopping_ = true; });
    thread_.join();
  }

  void Deliver(Parcel parcel, absl::Duration delay) {
    Post([this, parcel = std::move(parcel)] { Receive(parcel); }, delay);
  }

 private:
  struct Peer {
    std::string name;
    std::string address;
    std::uint64_t incarnation = 0;
    MonoTime last_heard;
  };

  static const LoopbackTransport*& CurrentTransport() {
    thread_local const LoopbackTransport* current = nullptr;
    return current;
  }
  bool OnProgressThread() const { return CurrentTransport() == this; }

  void Run() {
    CurrentTransport() = this;
    while (!stopping_) {
      if (work_->RunDue()) continue;
      pollfd fd{work_->event_fd(), POLLIN, 0};
      const timespec timeout =
          absl::ToTimespec(std::clamp(work_->UntilNext(), absl::ZeroDuration(), absl::Seconds(1)));
      ppoll(&fd, 1, &timeout, nullptr);
      work_->Drain();
    }
    work_->Close();
    while (!peers_.empty())
      Lose(peers_.begin()->first, absl::CancelledError("the transport stops"));
  }

  void OpenPeer(PeerHandle handle, const Peer& peer) {
    if (!network_->Reachable(peer.address)) {
      Post([this, handle, name = peer.name] {
        sink_.OnPeerLost(handle, absl::UnavailableError(
                                     absl::StrCat("connect to ", name, ": nobody at its address")));
      });
      return;
    }
    by_incarnation_[peer.incarnation] = handle;
    peers_.emplace(handle, peer);
  }

  void Lose(PeerHandle handle, const absl::Status& why) {
    const auto found = peers_.find(handle);
    if (found == peers_.end()) return;
    const std::uint64_t incarnation = found->second.incarnation;
    peers_.erase(found);
    if (const auto known = by_incarnation_.find(incarnation);
        known != by_incarnation_.end() && known->second == handle) {
      by_incarnation_.erase(known);
    }
    sink_.OnPeerLost(handle, why);
  }

  void Heartbeat() {
    std::vector<std::pair<PeerHandle, absl::Status>> lost;
    for (const auto& [handle, peer] : peers_) {
      const absl::Duration silent = clock_.Now() - peer.last_heard;
      if (silent > options_.silence_limit) {
        lost.emplace_back(handle,
                          absl::UnavailableError(absl::StrCat(peer.name, " has been silent for ",
                                                              absl::FormatDuration(silent))));
      } else if (!network_->Reachable(peer.address)) {
        lost.emplace_back(handle, absl::UnavailableError(
                                      absl::StrCat("connection to ", peer.name, ": it is gone")));
      } else {
        network_->Carry(
            address_, peer.address,
            {.sender_incarnation = options_.incarnation, .type = MessageType::kHeartbeat});
      }
    }
    for (const auto& [handle, why] : lost) Lose(handle, why);
    Post([this] { Heartbeat(); }, options_.heartbeat_interval);
  }

  void PostSend(PeerHandle to, Parcel parcel, std::span<const std::byte> payload,
                PendingDone& done) {
    const auto found = peers_.find(to);
    if (found == peers_.end()) {
      done(absl::UnavailableError("the peer is not connected"));
      return;
    }
    parcel.payload.assign(payload.begin(), payload.end());
    network_->Carry(address_, found->second.address, std::move(parcel));
    done(absl::OkStatus());
  }

  void Receive(const Parcel& parcel) {
    PeerHandle from{};
    if (const auto known = by_incarnation_.find(parcel.sender_incarnation);
        known != by_incarnation_.end()) {
      from = known->second;
      peers_.at(from).last_heard = clock_.Now();
    }
    if (parcel.type == MessageType::kHeartbeat) return;
    if (parcel.payload.empty()) {
      sink_.OnMessage(from, parcel.type, parcel.header);
      return;
    }
    const Landing landing =
        sink_.OnIncoming(from, parcel.type, parcel.header, parcel.payload.size());
    if (landing.slot.size() < parcel.payload.size()) return;
    if (from == PeerHandle{}) {
      sink_.OnPayload(from, landing.cookie,
                      absl::FailedPreconditionError("the sender is not connected"));
      return;
    }
    std::copy(parcel.payload.begin(), parcel.payload.end(), landing.slot.begin());
    sink_.OnPayload(from, landing.cookie, absl::OkStatus());
  }

  const std::shared_ptr<Network> network_;  // shared: a test may drop the network first
  const std::string address_;
  const LoopbackNetwork::Options options_;
  MessageSink& sink_;
  const Clock& clock_;
  const std::unique_ptr<WorkQueue> work_;
  std::atomic<std::uint64_t> next_handle_ = 1;

  // Of the progress thread.
  bool stopping_ = false;
  absl::flat_hash_map<PeerHandle, Peer> peers_;
  absl::flat_hash_map<std::uint64_t, PeerHandle> by_incarnation_;

  std::thread thread_;
};

void Network::Carry(const std::string& from, const std::string& to, Parcel parcel) {
  const absl::MutexLock lock(&mutex_);
  const auto receiver = transports_.find(to);
  if (receiver == transports_.end() || cuts_.contains({from, to}) || Happens(faults_.lose)) return;
  if (parcel.type != MessageType::kHeartbeat) {
    if (Happens(faults_.corrupt_header)) FlipBit(parcel.header);
    if (Happens(faults_.corrupt_payload)) FlipBit(parcel.payload);
  }
  absl::Duration delay = faults_.delay;
  if (Happens(faults_.reorder)) delay += kReorderDelay;
  if (Happens(faults_.duplicate)) receiver->second->Deliver(parcel, delay + kReorderDelay);
  receiver->second->Deliver(std::move(parcel), delay);
}

absl::StatusOr<std::unique_ptr<Transport>> Network::CreateTransport(const Options& options,
                                                                    MessageSink* sink,
                                                                    const Clock& clock) {
  std::string address;
  {
    const absl::MutexLock lock(&mutex_);
    address = absl::StrCat("loopback:", next_address_++);
  }
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<WorkQueue> work, WorkQueue::Create(clock));
  auto transport = std::make_unique<LoopbackTransport>(shared_from_this(), address, options, sink,
                                                       clock, std::move(work));
  transport->StartThread();
  return transport;
}

// Keeps the shared network that its transports hold on to.
class NetworkOwner : public LoopbackNetwork {
 public:
  void SetFaults(const LoopbackFaults& faults) override { network_->SetFaults(faults); }
  void Partition(std::string_view a, std::string_view b, bool cut) override {
    network_->Partition(a, b, cut);
  }
  absl::StatusOr<std::unique_ptr<Transport>> CreateTransport(const Options& options,
                                                             MessageSink* sink,
                                                             const Clock& clock) override {
    return network_->CreateTransport(options, sink, clock);
  }

 private:
  const std::shared_ptr<Network> network_ = std::make_shared<Network>();
};

}  // namespace

std::unique_ptr<LoopbackNetwork> LoopbackNetwork::Create() {
  return std::make_unique<NetworkOwner>();
}

}  // namespace kvferry::transport
