#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bench/report.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire.h"

// Chunks from one process to another through transport/ucx over TCP loopback, each with its header
// sealed and checked, its checksum computed by the sender and verified by the receiver, and
// acknowledged; against ucx_perftest's Active Message bandwidth with the same UCX settings, message
// size and window. Both run in turns, several times.
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

absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(std::uint64_t incarnation,
                                                         MessageSink* sink) {
  UcxOptions options;
  options.incarnation = incarnation;
  return CreateUcxTransport(options, sink, Clock::Steady());
}

// The addresses of the two processes pass over a socket, a length first.
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

// Lands chunks in a ring, verifies them, answers. Thread: progress thread.
class Receiver : public MessageSink {
 public:
  void Use(Transport* transport, std::span<std::byte> ring, std::size_t chunk_bytes) {
    transport_ = transport;
    for (std::size_t at = 0; at + chunk_bytes <= ring.size(); at += chunk_bytes)
      slots_.push_back({ring.subspan(at, chunk_bytes), {}});
    for (std::size_t i = 0; i < slots_.size(); ++i) free_.push_back(i);
  }
  void OnMessage(PeerHandle, MessageType, std::span<const std::byte>) override {}
  Landing OnIncoming(PeerHandle, MessageType, std::span<const std::byte> bytes,
                     std::size_t payload_bytes) override {
    const auto header = DecodeChunkHeader(bytes, Key());
    if (!header.ok() || header->payload_bytes != payload_bytes || free_.empty()) return {};
    const std::size_t slot = free_.back();
    free_.pop_back();
    slots_[slot].header = *header;
    return {slots_[slot].memory, slot};
  }
  void OnPayload(PeerHandle from, std::uint64_t cookie, const absl::Status& status) override {
    Slot& slot = slots_[cookie];
    free_.push_back(cookie);
    const bool good = status.ok() && Crc32c(slot.memory.first(slot.header.payload_bytes)) ==
                                         static_cast<std::uint32_t>(slot.header.payload_check);
    std::array<std::byte, kControlHeaderBytes> answer;
    const MessageType type = good ? MessageType::kAck : MessageType::kNack;
    EncodeControl({.type = type,
                   .sender_incarnation = Incarnation{kReceiver},
                   .chunk_seq = slot.header.chunk_seq},
                  Key(), answer);
    transport_->Send(from, type, answer, {}, [](const absl::Status&) {});
  }
  void OnPeerLost(PeerHandle, const absl::Status&) override {}

 private:
  struct Slot {
    std::span<std::byte> memory;
    ChunkHeader header;
  };
  Transport* transport_ = nullptr;
  std::vector<Slot> slots_;
  std::vector<std::size_t> free_;
};

// The child process: receives until its end of the socket is closed.
int RunReceiver(int fd, std::size_t chunk_bytes, int window) {
  if (!SetLogLevel("error").ok()) return 1;  // that the sender leaves is no news
  Receiver sink;
  auto transport = MakeTransport(kReceiver, &sink);
  if (!transport.ok()) return 1;
  auto ring = (*transport)->Allocate(chunk_bytes * window, MemoryKind::kHost);
  if (!ring.ok()) return 1;
  sink.Use(transport->get(), (*ring)->bytes(), chunk_bytes);
  const std::string sender = ReadAddress(fd);
  if (!(*transport)->Connect(sender, kSender, "sender").ok()) return 1;
  if (!WriteAddress(fd, (*transport)->LocalAddress())) return 1;
  char c = 0;
  while (read(fd, &c, 1) > 0) {
  }
  (*transport)->Stop();
  return 0;
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

// Sends chunks to a receiver process that lives as long as this.
class Sender {
 public:
  static absl::StatusOr<std::unique_ptr<Sender>> Create(int fd, std::size_t chunk_bytes,
                                                        int window) {
    auto sender = std::unique_ptr<Sender>(new Sender(chunk_bytes, window));
    KVF_ASSIGN_OR_RETURN(sender->transport_, MakeTransport(kSender, &sender->credits_));
    KVF_ASSIGN_OR_RETURN(sender->region_, sender->transport_->Allocate(chunk_bytes * window, MemoryKind::kHost));
    if (!WriteAddress(fd, sender->transport_->LocalAddress()))
      return absl::InternalError("the receiver process has ended");
    KVF_ASSIGN_OR_RETURN(sender->receiver_,
                         sender->transport_->Connect(ReadAddress(fd), kReceiver, "receiver"));
    return sender;
  }
  ~Sender() {
    if (transport_ != nullptr) transport_->Stop();
  }

  // GB/s from the first checksum to the last acknowledgement.
  absl::StatusOr<double> Round(int chunks) {
    const absl::Time begin = absl::Now();
    for (int i = 0; i < chunks; ++i) KVF_RETURN_IF_ERROR(SendOne());
    std::vector<int> all(window_);
    for (int& slot : all) {
      KVF_ASSIGN_OR_RETURN(slot, credits_.TakeSlot());
    }
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    for (const int slot : all) ReturnSlot(slot);
    return static_cast<double>(chunk_bytes_) * chunks / seconds / 1e9;
  }

 private:
  Sender(std::size_t chunk_bytes, int window)
      : chunk_bytes_(chunk_bytes), window_(window), credits_(window) {}

  absl::Status SendOne() {
    KVF_ASSIGN_OR_RETURN(const int slot, credits_.TakeSlot());
    const std::uint32_t seq = next_seq_++;
    credits_.Begin(seq, slot);
    const auto payload = region_->bytes().subspan(slot * chunk_bytes_, chunk_bytes_);
    std::array<std::byte, kChunkHeaderBytes> header;
    EncodeChunkHeader({.sender_incarnation = Incarnation{kSender},
                       .chunk_seq = seq,
                       .payload_check = Crc32c(payload),
                       .payload_bytes = static_cast<std::uint32_t>(chunk_bytes_)},
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

  const std::size_t chunk_bytes_;
  const int window_;
  Credits credits_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Region> region_;
  PeerHandle receiver_{};
  std::uint32_t next_seq_ = 0;
};

// A port that nobody listens on now.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                     getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  close(fd);
  return bound ? ntohs(address.sin_port) : 0;
}

// What a shell must say before ucx_perftest to give it our settings.
std::string PerftestCommand(const std::string& perftest, const std::string& options, int port) {
  std::string command = absl::StrCat("LD_LIBRARY_PATH=", perftest.substr(0, perftest.rfind('/')),
                                     "/../lib UCX_WARN_UNUSED_ENV_VARS=n");
  for (const auto& [name, value] : UcxOptions().settings)
    absl::StrAppend(&command, " UCX_", name, "=", value);
  return absl::StrCat(command, " timeout 120 ", perftest, " ", options, " -p ", port);
}

// GB/s that ucx_perftest reports over all its iterations.
absl::StatusOr<double> PerftestRound(const std::string& perftest, const std::string& options,
                                     std::size_t chunk_bytes, int window, int chunks) {
  const std::string base = PerftestCommand(perftest, options, FreePort());
  const std::string client =
      absl::StrCat(base, " 127.0.0.1 -t ucp_am_bw -s ", chunk_bytes, " -O ", window, " -n ", chunks,
                   " -w ", window, " -f -v 2>/dev/null | tail -1");
  // The server takes a moment to listen; the client is started again until it does.
  FILE* pipe = popen(absl::StrCat(base, " >/dev/null 2>&1 & for i in $(seq 50); do line=$(", client,
                                  "); case \"$line\" in *[0-9],*) echo \"$line\"; break;; esac; "
                                  "sleep 0.1; done; wait")
                         .c_str(),
                     "r");
  if (pipe == nullptr) return absl::InternalError("cannot start a shell for ucx_perftest");
  std::array<char, 512> line{};
  const bool got = fgets(line.data(), line.size(), pipe) != nullptr;
  pclose(pipe);
  const std::vector<std::string> fields = absl::StrSplit(line.data(), ',');
  double mib_per_s = 0;
  if (!got || fields.size() < 6 || !absl::SimpleAtod(fields[5], &mib_per_s)) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", perftest,
                     "' gave no result; scripts/deps.sh installs it, and "
                     "--perftest says where it is"));
  }
  return mib_per_s * 1048576 / 1e9;
}

struct Arguments {
  std::string out;
  std::string perftest = ".deps/ucx/libucx/bin/ucx_perftest";
  std::size_t chunk_bytes = 4 << 20;
  int window = 4, chunks = 500, rounds = 7;
};

// Against the faster of perftest's two ways to wait: polling wins while each side has a core.
absl::StatusOr<double> BestPerftestRound(const Arguments& arguments, const std::string& options) {
  double best = 0;
  for (const char* wait_mode : {" -E poll", " -E sleep"}) {
    KVF_ASSIGN_OR_RETURN(const double result,
                         PerftestRound(arguments.perftest, options + wait_mode,
                                       arguments.chunk_bytes, arguments.window, arguments.chunks));
    best = std::max(best, result);
  }
  return best;
}

// What perftest is started with, and the bar against it. Without -e its endpoints are not in error
// mode PEER: UCX then writes into the receiver's memory by PUT, and nobody notices a dead peer.
struct Baseline {
  std::string options, name, bar;
  std::vector<double> gb_per_s, ratios;
};

absl::Status Measure(const Arguments& arguments, int fd, Report& report) {
  KVF_ASSIGN_OR_RETURN(const auto sender,
                       Sender::Create(fd, arguments.chunk_bytes, arguments.window));
  KVF_RETURN_IF_ERROR(sender->Round(arguments.window * 4).status());  // connects, touches memory
  std::vector<Baseline> baselines = {
      {"-e", "ucx_perftest ucp_am_bw in our error mode", ">= 0.85", {}, {}},
      {"", "ucx_perftest ucp_am_bw without error handling", "none", {}, {}}};
  std::vector<double> ours;
  for (int round = 0; round < arguments.rounds; ++round) {
    KVF_ASSIGN_OR_RETURN(const double transport, sender->Round(arguments.chunks));
    ours.push_back(transport);
    for (Baseline& baseline : baselines) {
      KVF_ASSIGN_OR_RETURN(const double perftest, BestPerftestRound(arguments, baseline.options));
      baseline.gb_per_s.push_back(perftest);
      baseline.ratios.push_back(transport / perftest);
    }
  }
  nlohmann::json settings;
  for (const auto& [name, value] : UcxOptions().settings) settings["UCX_" + name] = value;
  for (const Baseline& baseline : baselines) {
    report.AddRatio(absl::StrCat("chunks of ", arguments.chunk_bytes, " B over TCP loopback"),
                    Summarize(baseline.ratios).median, baseline.name, baseline.bar,
                    {{"chunk_bytes", arguments.chunk_bytes},
                     {"window", arguments.window},
                     {"chunks_per_round", arguments.chunks},
                     {"checksum", "crc32c, computed and verified"},
                     {"perftest_wait", "the faster of poll and sleep in each round"},
                     {"settings", settings},
                     {"ratio", ToJson(Summarize(baseline.ratios))},
                     {"transport_gb_per_s", ToJson(Summarize(ours))},
                     {"perftest_gb_per_s", ToJson(Summarize(baseline.gb_per_s))}});
  }
  return report.Write(arguments.out);
}

int Run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Wire speed of transport/ucx against ucx_perftest with the same settings.");
  app.add_option("--out", arguments.out, "Where to write the JSON report.");
  app.add_option("--perftest", arguments.perftest, "The ucx_perftest program.");
  app.add_option("--chunk-bytes", arguments.chunk_bytes, "Payload of one chunk.");
  app.add_option("--window", arguments.window, "Chunks in flight.");
  app.add_option("--chunks", arguments.chunks, "Chunks in one round.");
  app.add_option("--rounds", arguments.rounds, "Rounds of each.");
  CLI11_PARSE(app, argc, argv);

  std::array<int, 2> sockets{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) return 1;
  const pid_t child = fork();  // before there are threads
  if (child == 0) {
    close(sockets[0]);
    _exit(RunReceiver(sockets[1], arguments.chunk_bytes, arguments.window));
  }
  close(sockets[1]);
  Report report("transfer", argc, argv);
  const absl::Status status = Measure(arguments, sockets[0], report);
  close(sockets[0]);  // ends the receiver
  waitpid(child, nullptr, 0);
  if (!status.ok()) std::cerr << "transfer_bench: " << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
