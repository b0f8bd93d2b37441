// Chunks from GPU to GPU over TCP, through page-locked host memory:
//   gpu_test.sh --bench gpu_staging      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <future>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/chunk_stream.h"
#include "bench/forked_peer.h"
#include "bench/report.h"
#include "common/crc32c.h"
#include "common/device_name.h"
#include "common/status_macros.h"
#include "decode_node/device_cache_memory.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"

// As workers without a common GPU link do it: the sender's GPU copies a finished chunk into a
// page-locked send slot, whose checksum the CPU makes; the receiver's GPU copies it out of a
// page-locked landing slot, verifies and scatters it to pages (decode_node/device_cache_memory).
// Against the same chunks from host memory to host memory, made and verified by CPUs. A transport
// has one UCX worker: several are several transports of one process on each side. All in turns.
namespace kvferry::bench {
namespace {

constexpr std::size_t kPageBytes = 8 * 4864;  // kivi-4-g64, 8 KV heads, 128 channels

struct Arguments {
  std::string out;
  std::string sender = "cuda:0", receiver;
  std::size_t chunk_bytes = 4 << 20;
  int window = 4, chunks = 300, rounds = 9;
  std::vector<int> workers = {1, 4};

  // Whole pages.
  std::size_t bytes() const { return chunk_bytes / kPageBytes * kPageBytes; }
  int most_workers() const { return *std::max_element(workers.begin(), workers.end()); }
};

ChunkStreamOptions HostOptions(const Arguments& arguments) {
  return {.chunk_bytes = arguments.bytes(),
          .window = arguments.window,
          .check = [](std::span<const std::byte> payload) { return Crc32c(payload); },
          .check_threads = 1};
}

absl::StatusOr<std::shared_ptr<void>> LockMemory(std::span<std::byte> slots) {
  KVF_ASSIGN_OR_RETURN(kernels::RegisteredMemory locked,
                       kernels::RegisteredMemory::Register(slots));
  return std::make_shared<kernels::RegisteredMemory>(std::move(locked));
}

// A device that chunks come from.
class Source {
 public:
  static absl::StatusOr<std::unique_ptr<Source>> Create(int gpu, std::size_t bytes) {
    KVF_RETURN_IF_ERROR(kernels::UseDevice(gpu));
    KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create());
    std::unique_ptr<Source> source(new Source(gpu, std::move(stream)));
    KVF_ASSIGN_OR_RETURN(source->chunk_, kernels::DeviceBuffer::Allocate(bytes));
    std::vector<std::uint64_t> values(bytes / sizeof(std::uint64_t));
    std::mt19937_64 random(1);
    for (std::uint64_t& value : values) value = random();
    KVF_RETURN_IF_ERROR(
        kernels::CopyAsync(source->chunk_.data(), values.data(), bytes, source->stream_));
    KVF_RETURN_IF_ERROR(source->stream_.Synchronize());
    return source;
  }

  // Into a send slot. Thread: any, one at a time.
  absl::Status CopyTo(std::byte* slot) {
    KVF_RETURN_IF_ERROR(kernels::UseDevice(gpu_));
    KVF_RETURN_IF_ERROR(kernels::CopyAsync(slot, chunk_.data(), chunk_.bytes(), stream_));
    return stream_.Synchronize();
  }

 private:
  Source(int gpu, kernels::Stream stream) : gpu_(gpu), stream_(std::move(stream)) {}

  const int gpu_;
  kernels::Stream stream_;
  kernels::DeviceBuffer chunk_;
};

// Nothing: a device without memory of its own. CUDA does not survive a fork: asked for after it.
absl::StatusOr<std::optional<int>> GpuOf(const std::string& device) {
  if (!device.empty()) return GpuOrdinal(device);
  return std::optional<int>(std::max(0, kernels::DeviceCount() - 1));
}

// The receiving side of one pair.
absl::StatusOr<int> RunReceiver(int fd, const Arguments& arguments) {
  KVF_ASSIGN_OR_RETURN(const std::optional<int> device, GpuOf(arguments.receiver));
  if (!device.has_value()) return ReceiveChunks(fd, HostOptions(arguments));
  const int gpu = *device;
  KVF_RETURN_IF_ERROR(kernels::UseDevice(gpu));
  KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create());
  KVF_ASSIGN_OR_RETURN(
      const auto memory,
      decode::DeviceCacheMemory::Create({.gpu = gpu, .slot_bytes = arguments.chunk_bytes}, stream));
  KVF_ASSIGN_OR_RETURN(std::byte* const pages, memory->Allocate(arguments.bytes()));
  decode::ChunkPart part{.piece_bytes = kPageBytes, .pieces = {}};
  for (std::size_t at = 0; at < arguments.bytes(); at += kPageBytes)
    part.pieces.push_back(pages + at);
  ChunkStreamOptions options = HostOptions(arguments);
  options.check = [&](std::span<const std::byte> payload) {
    return memory->CopyChunk({&part, 1}, payload);
  };
  options.pin = [&](std::span<std::byte> ring) -> absl::StatusOr<std::shared_ptr<void>> {
    KVF_ASSIGN_OR_RETURN(std::shared_ptr<decode::CacheMemory::Pin> pin, memory->PinLanding(ring));
    return pin;
  };
  return ReceiveChunks(fd, options);
}

// One way for chunks: as many pairs as workers are wanted.
class Way {
 public:
  virtual ~Way() = default;

  absl::Status AddPair(int fd, ChunkStreamOptions options) {
    KVF_ASSIGN_OR_RETURN(senders_.emplace_back(), ChunkSender::Create(fd, std::move(options)));
    return absl::OkStatus();
  }
  const std::string& path() const { return senders_.back()->path(); }

  // GB/s of the first `pairs` pairs together, each of which sends `chunks` chunks.
  absl::StatusOr<double> Round(int pairs, int chunks, std::size_t bytes) {
    std::vector<std::future<absl::Status>> running;
    const absl::Time begin = absl::Now();
    for (int pair = 0; pair < pairs; ++pair) {
      running.push_back(std::async(std::launch::async, [&sender = *senders_[pair], chunks] {
        return sender.Round(chunks).status();
      }));
    }
    for (auto& done : running) KVF_RETURN_IF_ERROR(done.get());
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    return static_cast<double>(bytes) * chunks * pairs / seconds / 1e9;
  }

 private:
  std::vector<std::unique_ptr<ChunkSender>> senders_;
};

std::string NameOf(const std::optional<int>& gpu) {
  return gpu.has_value() ? absl::StrCat("cuda:", *gpu) : "cpu";
}

// The sender's side of one pair whose chunks come from a GPU.
ChunkStreamOptions StagedOptions(const Arguments& arguments, Source& source, std::byte*& slots) {
  ChunkStreamOptions options = HostOptions(arguments);
  options.pin = [&slots](std::span<std::byte> memory) {
    slots = memory.data();
    return LockMemory(memory);
  };
  options.check = [&source, &slots](std::span<const std::byte> payload) {
    const absl::Status copied = source.CopyTo(slots + (payload.data() - slots));
    return copied.ok() ? absl::StatusOr<std::uint32_t>(Crc32c(payload)) : copied;
  };
  return options;
}

// staging, hosts: the receiving process of each way.
absl::Status Measure(const Arguments& arguments, const ForkedPeer& staging, const ForkedPeer& hosts,
                     Report& report) {
  KVF_ASSIGN_OR_RETURN(const std::optional<int> from, GpuOf(arguments.sender));
  KVF_ASSIGN_OR_RETURN(const std::optional<int> to, GpuOf(arguments.receiver));
  nlohmann::json details = {{"from", NameOf(from)},
                            {"to", NameOf(to)},
                            {"chunk_bytes", arguments.bytes()},
                            {"window", arguments.window},
                            {"chunks_per_round", arguments.chunks}};
  if (to.has_value()) {
    KVF_ASSIGN_OR_RETURN(const kernels::DeviceInfo info, kernels::GetDevice(*to));
    details["gpu"] = info.name;
  }
  std::vector<std::unique_ptr<Source>> sources;
  const int most = arguments.most_workers();
  std::vector<std::byte*> slots(most);
  Way staged, host;
  for (int pair = 0; pair < most; ++pair) {
    ChunkStreamOptions options = HostOptions(arguments);
    if (from.has_value()) {
      KVF_ASSIGN_OR_RETURN(sources.emplace_back(), Source::Create(*from, arguments.bytes()));
      options = StagedOptions(arguments, *sources.back(), slots[pair]);
    }
    KVF_RETURN_IF_ERROR(staged.AddPair(staging.fd(pair), std::move(options)));
    KVF_RETURN_IF_ERROR(host.AddPair(hosts.fd(pair), HostOptions(arguments)));
  }
  details["path"] = staged.path();
  // Connects and touches memory.
  KVF_RETURN_IF_ERROR(staged.Round(most, arguments.window * 4, arguments.bytes()).status());
  KVF_RETURN_IF_ERROR(host.Round(most, arguments.window * 4, arguments.bytes()).status());
  for (const int workers : arguments.workers) {
    std::vector<double> ours, base, ratios;
    for (int round = 0; round < arguments.rounds; ++round) {
      KVF_ASSIGN_OR_RETURN(const double with_gpus,
                           staged.Round(workers, arguments.chunks, arguments.bytes()));
      KVF_ASSIGN_OR_RETURN(const double without,
                           host.Round(workers, arguments.chunks, arguments.bytes()));
      ours.push_back(with_gpus);
      base.push_back(without);
      ratios.push_back(with_gpus / without);
    }
    nlohmann::json row = details;
    row["workers"] = workers;
    row["ratio"] = ToJson(Summarize(ratios));
    row["staged_gb_per_s"] = ToJson(Summarize(ours));
    row["host_gb_per_s"] = ToJson(Summarize(base));
    report.AddRatio(absl::StrCat(NameOf(from), " to ", NameOf(to),
                                 " over TCP through page-locked memory, UCX workers: ", workers),
                    Summarize(ratios).median, "host to host with the same workers", ">= 0.85", row);
  }
  return report.Write(arguments.out);
}

int Run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Chunks from GPU to GPU over TCP against chunks from host to host.");
  app.add_option("--out", arguments.out, "Where to write the JSON report.");
  app.add_option("--sender-device", arguments.sender, "cpu or cuda:N")->capture_default_str();
  app.add_option("--receiver-device", arguments.receiver, "cpu or cuda:N [the last GPU]");
  app.add_option("--chunk-bytes", arguments.chunk_bytes, "Payload of one chunk, at most.")
      ->capture_default_str();
  app.add_option("--window", arguments.window, "Chunks in flight.")->capture_default_str();
  app.add_option("--chunks", arguments.chunks, "Chunks in one round.")->capture_default_str();
  app.add_option("--rounds", arguments.rounds, "Rounds of each.")->capture_default_str();
  app.add_option("--workers", arguments.workers, "UCX workers on each side; repeatable")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (arguments.most_workers() < 1 || arguments.bytes() == 0) {
    std::cerr << "gpu_staging_bench: --workers must be at least 1, --chunk-bytes at least "
              << kPageBytes << '\n';
    return 1;
  }
  const int most = arguments.most_workers();
  const ForkedPeer staging([&](int fd) { return RunReceiver(fd, arguments); }, most);
  const ForkedPeer hosts([&](int fd) { return ReceiveChunks(fd, HostOptions(arguments)); }, most);
  Report report("gpu_staging", argc, argv);
  const absl::Status status = Measure(arguments, staging, hosts, report);
  if (!status.ok()) std::cerr << "gpu_staging_bench: " << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
