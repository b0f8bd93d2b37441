#include "bench/chunk_stream.h"

#include <unistd.h>

#include <array>
#include <iostream>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/serial_worker.h"
#include "common/status_macros.h"
#include "transport/wire.h"

namespace kvferry::bench {
namespace {

using namespace transport;  // NOLINT: the bench is about this folder

constexpr std::uint64_t kSender = 1, kReceiver = 2;
constexpr absl::Duration kRoundLimit = absl::Minutes(2);

PairKey Key() {
  PairKey key;
  std::iota(key.begin(), key.end(), std::uint8_t{1});
  return key;
}

absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(UcxOptions options,
                                                         std::uint64_t incarnation,
                                                         MessageSink* sink) {
  options.incarnation = incarnation;
  return CreateUcxTransport(options, sink, Clock::Steady());
}

// Lands chunks in a ring, verifies them, answers. Thread: progress thread, and perhaps those
// that verify.
class Receiver : public MessageSink {
 public:
  explicit Receiver(const ChunkStreamOptions& options) : options_(options) {}

  void Use(Transport* transport, std::span<std::byte> ring) {
    transport_ = transport;
    for (std::size_t at = 0; at + options_.chunk_bytes <= ring.size(); at += options_.chunk_bytes)
      slots_.push_back({ring.subspan(at, options_.chunk_bytes), {}});
    for (int i = 0; i < options_.check_threads; ++i)
      checkers_.push_back(std::make_unique<SerialWorker>());
    const absl::MutexLock lock(&mutex_);
    for (std::size_t i = 0; i < slots_.size(); ++i) free_.push_back(i);
  }
  void OnMessage(PeerHandle, MessageType, std::span<const std::byte>) override {}
  Landing OnIncoming(PeerHandle, MessageType, std::span<const std::byte> bytes,
                     std::size_t payload_bytes) override {
    const auto header = DecodeChunkHeader(bytes, Key());
    const absl::MutexLock lock(&mutex_);
    if (!header.ok() || header->payload_bytes != payload_bytes || free_.empty()) return {};
    const std::size_t slot = free_.back();
    free_.pop_back();
    slots_[slot].header = *header;
    return {slots_[slot].memory, slot};
  }
  void OnPayload(PeerHandle from, std::uint64_t cookie, const absl::Status& status) override {
    if (checkers_.empty()) {
      Answer(from, cookie, status);
      return;
    }
    checkers_[cookie % checkers_.size()]->Push(
        [this, from, cookie, status] { Answer(from, cookie, status); });
  }
  void OnPeerLost(PeerHandle, const absl::Status&) override {}

  // When the transport has stopped.
  void Stop() { checkers_.clear(); }

 private:
  struct Slot {
    std::span<std::byte> memory;
    ChunkHeader header;
  };

  void Answer(PeerHandle from, std::size_t index, const absl::Status& status) {
    const Slot& slot = slots_[index];
    const bool good = status.ok() && Verified(slot);
    std::array<std::byte, kControlHeaderBytes> answer;
    const MessageType type = good ? MessageType::kAck : MessageType::kNack;
    EncodeControl({.type = type,
                   .sender_incarnation = Incarnation{kReceiver},
                   .chunk_seq = slot.header.chunk_seq},
                  Key(), answer);
    {
      const absl::MutexLock lock(&mutex_);
      free_.push_back(index);  // before the sender can learn of it
    }
    transport_->Send(from, type, answer, {}, [](const absl::Status&) {});
  }
  bool Verified(const Slot& slot) const {
    const absl::StatusOr<std::uint32_t> crc =
        options_.check(slot.memory.first(slot.header.payload_bytes));
    return crc.ok() && *crc == static_cast<std::uint32_t>(slot.header.payload_check);
  }
  const ChunkStreamOptions& options_;
  Transport* transport_ = nullptr;
  std::vector<Slot> slots_;  // fixed after Use; one that is not free belongs to its chunk
  absl::Mutex mutex_;
  std::vector<std::size_t> free_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<SerialWorker>> checkers_;
};

// Null: there is nothing to do.
absl::StatusOr<std::shared_ptr<void>> Pin(const ChunkStreamOptions& options, Region& region) {
  if (!options.pin) return nullptr;
  return options.pin(region.bytes());
}

absl::Status Receive(int fd, const ChunkStreamOptions& options) {
  KVF_RETURN_IF_ERROR(SetLogLevel("error"));  // that the sender leaves is no news
  Receiver sink(options);
  KVF_ASSIGN_OR_RETURN(const auto transport, MakeTransport(options.ucx, kReceiver, &sink));
  KVF_ASSIGN_OR_RETURN(const auto ring,
                       transport->Allocate(options.chunk_bytes * options.window, options.memory));
  KVF_ASSIGN_OR_RETURN(const std::shared_ptr<void> pinned, Pin(options, *ring));
  sink.Use(transport.get(), ring->bytes());
  KVF_RETURN_IF_ERROR(transport->Connect(ReadAddress(fd), kSender, "sender").status());
  if (!WriteAddress(fd, transport->LocalAddress()))
    return absl::InternalError("the sender process has ended");
  char c = 0;
  while (read(fd, &c, 1) > 0) {
  }
  transport->Stop();
  sink.Stop();
  return absl::OkStatus();
}

// Counts acknowledgements and hands slots back. Thread: the progress thread gives, the bench's
// takes.
class Credits : public MessageSink {
 public:
  explicit Credits(int window) : slots_(window) { std::iota(slots_.begin(), slots_.end(), 0); }

  void OnMessage(PeerHandle, MessageType type, std::span<const std::byte> bytes) override {
    const auto answer = DecodeControl(bytes, type, Key());
    const absl::MutexLock lock(&mutex_);
    if (!answer.ok() || type != MessageType::kAck) {
      failure_ = absl::DataLossError("a chunk was not acknowledged");
      return;
    }
    Release(answer->chunk_seq);
  }
  Landing OnIncoming(PeerHandle, MessageType, std::span<const std::byte>, std::size_t) override {
    return {};
  }
  void OnPayload(PeerHandle, std::uint64_t, const absl::Status&) override {}
  void OnPeerLost(PeerHandle, const absl::Status& why) override {
    const absl::MutexLock lock(&mutex_);
    failure_ = why;
  }

  // A slot is free again when its chunk is acknowledged and its send has completed.
  void SendCompleted(std::uint32_t chunk_seq) {
    const absl::MutexLock lock(&mutex_);
    Release(chunk_seq);
  }
  absl::StatusOr<int> TakeSlot() {
    const absl::MutexLock lock(&mutex_);
    const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !slots_.empty() || !failure_.ok();
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), kRoundLimit))
      return absl::DeadlineExceededError("no chunk was acknowledged");
    KVF_RETURN_IF_ERROR(failure_);
    const int slot = slots_.back();
    slots_.pop_back();
    return slot;
  }
  void Begin(std::uint32_t chunk_seq, int slot) {
    const absl::MutexLock lock(&mutex_);
    if (slot_of_.size() <= chunk_seq) slot_of_.resize(chunk_seq + 1);
    slot_of_[chunk_seq] = {slot, 2};
  }

 private:
  struct InFlight {
    int slot = 0;
    int missing = 0;
  };
  void Release(std::uint32_t chunk_seq) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (chunk_seq < slot_of_.size() && --slot_of_[chunk_seq].missing == 0)
      slots_.push_back(slot_of_[chunk_seq].slot);
  }

  absl::Mutex mutex_;
  std::vector<int> slots_ ABSL_GUARDED_BY(mutex_);
  std::vector<InFlight> slot_of_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

class Sender final : public ChunkSender {
 public:
  explicit Sender(ChunkStreamOptions options)
      : options_(std::move(options)), credits_(options_.window) {}
  ~Sender() override {
    if (transport_ != nullptr) transport_->Stop();
  }

  absl::Status Start(int fd) {
    KVF_ASSIGN_OR_RETURN(transport_, MakeTransport(options_.ucx, kSender, &credits_));
    KVF_ASSIGN_OR_RETURN(
        region_, transport_->Allocate(options_.chunk_bytes * options_.window, options_.memory));
    KVF_ASSIGN_OR_RETURN(pinned_, Pin(options_, *region_));
    if (!WriteAddress(fd, transport_->LocalAddress()))
      return absl::InternalError("the receiver process has ended");
    const std::string receiver = ReadAddress(fd);
    KVF_ASSIGN_OR_RETURN(const Path path, transport_->PathTo(receiver));
    path_ = path.label;
    KVF_ASSIGN_OR_RETURN(receiver_, transport_->Connect(receiver, kReceiver, "receiver"));
    return absl::OkStatus();
  }

  std::span<std::byte> memory() const override { return region_->bytes(); }
  const std::string& path() const override { return path_; }

  absl::StatusOr<double> Round(int chunks) override {
    const absl::Time begin = absl::Now();
    for (int i = 0; i < chunks; ++i) KVF_RETURN_IF_ERROR(SendOne());
    std::vector<int> all(options_.window);
    for (int& slot : all) {
      KVF_ASSIGN_OR_RETURN(slot, credits_.TakeSlot());
    }
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    for (const int slot : all) ReturnSlot(slot);
    return static_cast<double>(options_.chunk_bytes) * chunks / seconds / 1e9;
  }

 private:
  absl::Status SendOne() {
    KVF_ASSIGN_OR_RETURN(const int slot, credits_.TakeSlot());
    const std::uint32_t seq = next_seq_++;
    credits_.Begin(seq, slot);
    const auto payload =
        region_->bytes().subspan(slot * options_.chunk_bytes, options_.chunk_bytes);
    KVF_ASSIGN_OR_RETURN(const std::uint32_t crc, options_.check(payload));
    std::array<std::byte, kChunkHeaderBytes> header;
    EncodeChunkHeader({.sender_incarnation = Incarnation{kSender},
                       .chunk_seq = seq,
                       .payload_check = crc,
                       .payload_bytes = static_cast<std::uint32_t>(options_.chunk_bytes)},
                      Key(), header);
    transport_->Send(receiver_, MessageType::kChunk, header, payload,
                     [this, seq](const absl::Status&) { credits_.SendCompleted(seq); });
    return absl::OkStatus();
  }
  void ReturnSlot(int slot) {
    const std::uint32_t seq = next_seq_++;
    credits_.Begin(seq, slot);
    credits_.SendCompleted(seq);
    credits_.SendCompleted(seq);
  }

  const ChunkStreamOptions options_;
  Credits credits_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Region> region_;
  std::shared_ptr<void> pinned_;
  PeerHandle receiver_{};
  std::string path_;
  std::uint32_t next_seq_ = 0;
};

}  // namespace

int ReceiveChunks(int fd, ChunkStreamOptions options) {
  const absl::Status status = Receive(fd, options);
  if (!status.ok()) std::cerr << "receiver: " << status << '\n';
  return status.ok() ? 0 : 1;
}

absl::StatusOr<std::unique_ptr<ChunkSender>> ChunkSender::Create(int fd,
                                                                 ChunkStreamOptions options) {
  auto sender = std::make_unique<Sender>(std::move(options));
  KVF_RETURN_IF_ERROR(sender->Start(fd));
  return sender;
}

bool WriteAddress(int fd, const std::string& address) {
  const std::uint32_t size = address.size();
  return write(fd, &size, sizeof(size)) == sizeof(size) &&
         write(fd, address.data(), size) == static_cast<ssize_t>(size);
}

std::string ReadAddress(int fd) {
  std::uint32_t size = 0;
  if (read(fd, &size, sizeof(size)) != sizeof(size)) return "";
  std::string address(size, '\0');
  if (read(fd, address.data(), size) != static_cast<ssize_t>(size)) return "";
  return address;
}

}  // namespace kvferry::bench
