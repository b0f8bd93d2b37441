// Chunks from GPU to GPU:
//   gpu_test.sh --bench gpu_transfer      in a bundle (scripts/bundle.sh), into its results/

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
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
#include "bench/ucx_probe.h"
#include "common/status_macros.h"
#include "kernels/chunk_checker.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/status.h"

// Chunks from the first GPU to the last through transport/ucx, in two processes: the receiver's GPU
// verifies each while it copies it to pages (adopt_chunk), and acknowledges it. Against bare Active
// Messages with the same settings, size and window, and against cudaMemcpyPeerAsync. With one GPU
// both processes share it, and copies stay on it. All in turns, several times.
namespace kvferry::bench {
namespace {

using kernels::DeviceBuffer;

constexpr int kCheckers = 2;                  // as decode::kDeviceAdopters
constexpr std::size_t kPageBytes = 8 * 4864;  // kivi-4-g64, 8 KV heads, 128 channels

struct Arguments {
  std::string out;
  double poll_us = absl::ToDoubleMicroseconds(transport::UcxOptions().poll);
  std::size_t chunk_bytes = 8 << 20;
  int window = 8, chunks = 400, rounds = 9;
};

// What a process has on its GPU.
struct Gpu {
  static absl::StatusOr<Gpu> Open(int ordinal) {
    Gpu gpu;
    KVF_ASSIGN_OR_RETURN(gpu.memory, kernels::CreateDeviceMemory(ordinal));
    KVF_RETURN_IF_ERROR(gpu.memory->Use());
    for (std::unique_ptr<kernels::ChunkChecker>& checker : gpu.checkers) {
      KVF_ASSIGN_OR_RETURN(checker, kernels::ChunkChecker::Create());
    }
    return gpu;
  }
  std::unique_ptr<DeviceMemory> memory;
  std::array<std::unique_ptr<kernels::ChunkChecker>, kCheckers> checkers;
};

ChunkStreamOptions StreamOptions(const Arguments& arguments, const Gpu& gpu) {
  return {.ucx = {.device = gpu.memory.get(),
                  .required = "cuda_ipc",
                  .poll = absl::Microseconds(arguments.poll_us)},
          .memory = transport::MemoryKind::kDevice,
          .chunk_bytes = arguments.chunk_bytes,
          .window = arguments.window,
          .check_threads = kCheckers};
}

// A chunk's checksum is made when it is quantized, before it is sent: once for each slot, which
// keeps its bytes.
class KnownChecks {
 public:
  explicit KnownChecks(kernels::ChunkChecker& checker) : checker_(checker) {}
  absl::StatusOr<std::uint32_t> operator()(std::span<const std::byte> payload) {
    const auto [check, added] = checks_.try_emplace(payload.data(), 0);
    if (added) {
      KVF_ASSIGN_OR_RETURN(check->second, checker_.Check(payload));
    }
    return check->second;
  }

 private:
  kernels::ChunkChecker& checker_;
  std::map<const std::byte*, std::uint32_t> checks_;
};

// The transport's, as it makes them for a GPU.
UcxProbeOptions ProbeOptions(const Arguments& arguments) {
  UcxProbeOptions options{.settings = transport::UcxOptions().settings,
                          .message_bytes = arguments.chunk_bytes,
                          .window = arguments.window};
  options.settings["TLS"] = "tcp,cuda_copy,cuda_ipc";
  return options;
}

// Pages for one chunk after the other, and their addresses where the kernel reads them.
struct Pages {
  static absl::StatusOr<Pages> Allocate(std::size_t chunk_bytes, DeviceMemory& memory) {
    Pages pages;
    const std::size_t count = (chunk_bytes + kPageBytes - 1) / kPageBytes;
    KVF_ASSIGN_OR_RETURN(pages.bytes, DeviceBuffer::Allocate(count * kPageBytes));
    KVF_ASSIGN_OR_RETURN(pages.addresses, DeviceBuffer::Allocate(count * sizeof(std::byte*)));
    std::vector<std::byte*> list;
    for (std::size_t i = 0; i < count; ++i) list.push_back(pages.bytes.data() + i * kPageBytes);
    KVF_RETURN_IF_ERROR(memory.Copy(pages.addresses.data(), list.data(), count * sizeof(list[0])));
    return pages;
  }
  DeviceBuffer bytes, addresses;
};

absl::StatusOr<int> RunReceiver(int fd, const Arguments& arguments) {
  KVF_ASSIGN_OR_RETURN(const Gpu gpu, Gpu::Open(kernels::DeviceCount() - 1));
  KVF_ASSIGN_OR_RETURN(const Pages pages, Pages::Allocate(arguments.chunk_bytes, *gpu.memory));
  ChunkStreamOptions options = StreamOptions(arguments, gpu);
  options.check = [&](std::span<const std::byte> payload) {
    const auto slot = reinterpret_cast<std::uintptr_t>(payload.data()) / arguments.chunk_bytes;
    return gpu.checkers[slot % kCheckers]->Adopt(payload, pages.addresses.as<std::byte* const>(),
                                                 kPageBytes);
  };
  return ReceiveChunks(fd, options);
}

absl::StatusOr<int> RunProbe(int fd, const Arguments& arguments) {
  KVF_ASSIGN_OR_RETURN(const Gpu gpu, Gpu::Open(kernels::DeviceCount() - 1));
  KVF_ASSIGN_OR_RETURN(const DeviceMemory::Block memory,
                       gpu.memory->Allocate(arguments.chunk_bytes * arguments.window));
  return ReceiveProbe(fd, ProbeOptions(arguments),
                      {memory.get(), arguments.chunk_bytes * arguments.window});
}

// GB/s of chunk-sized copies on one stream, to `to_gpu`.
class Copies {
 public:
  static absl::StatusOr<Copies> Create(int to_gpu, const Arguments& arguments) {
    Copies copies;
    copies.to_gpu_ = to_gpu;
    copies.arguments_ = arguments;
    const std::size_t bytes = arguments.chunk_bytes * arguments.window;
    if (to_gpu != 0) {
      KVF_RETURN_IF_ERROR(
          kernels::CudaStatus(cudaDeviceEnablePeerAccess(to_gpu, 0), "access to the other GPU"));
    }
    KVF_ASSIGN_OR_RETURN(copies.from_, DeviceBuffer::Allocate(bytes));
    KVF_RETURN_IF_ERROR(kernels::UseDevice(to_gpu));
    KVF_ASSIGN_OR_RETURN(copies.to_, DeviceBuffer::Allocate(bytes));
    KVF_RETURN_IF_ERROR(kernels::UseDevice(0));
    KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create());
    copies.stream_ = std::make_unique<kernels::Stream>(std::move(stream));
    return copies;
  }

  absl::StatusOr<double> Round(int chunks) {
    const absl::Time begin = absl::Now();
    for (int i = 0; i < chunks; ++i) {
      const std::size_t at = arguments_.chunk_bytes * (i % arguments_.window);
      KVF_RETURN_IF_ERROR(
          kernels::CudaStatus(cudaMemcpyPeerAsync(to_.data() + at, to_gpu_, from_.data() + at, 0,
                                                  arguments_.chunk_bytes, stream_->get()),
                              "cudaMemcpyPeerAsync"));
    }
    KVF_RETURN_IF_ERROR(stream_->Synchronize());
    return static_cast<double>(arguments_.chunk_bytes) * chunks /
           absl::ToDoubleSeconds(absl::Now() - begin) / 1e9;
  }

 private:
  int to_gpu_ = 0;
  Arguments arguments_;
  DeviceBuffer from_, to_;
  std::unique_ptr<kernels::Stream> stream_;
};

absl::Status FillRandom(std::span<std::byte> memory, DeviceMemory& device) {
  std::vector<std::uint64_t> values(memory.size() / sizeof(std::uint64_t));
  std::mt19937_64 random(1);
  for (std::uint64_t& value : values) value = random();
  return device.Copy(memory.data(), values.data(), values.size() * sizeof(values[0]));
}

absl::Status Measure(const Arguments& arguments, int receiver, int probe, Report& report) {
  KVF_ASSIGN_OR_RETURN(const Gpu gpu, Gpu::Open(0));
  const int to_gpu = kernels::DeviceCount() - 1;
  KVF_ASSIGN_OR_RETURN(const kernels::DeviceInfo device, kernels::GetDevice(to_gpu));
  ChunkStreamOptions options = StreamOptions(arguments, gpu);
  options.check = KnownChecks(*gpu.checkers[0]);
  KVF_ASSIGN_OR_RETURN(const auto sender, ChunkSender::Create(receiver, std::move(options)));
  KVF_RETURN_IF_ERROR(FillRandom(sender->memory(), *gpu.memory));
  KVF_ASSIGN_OR_RETURN(const DeviceMemory::Block probe_memory,
                       gpu.memory->Allocate(arguments.chunk_bytes * arguments.window));
  KVF_ASSIGN_OR_RETURN(
      const auto bare,
      UcxProbe::Create(probe, ProbeOptions(arguments),
                       {probe_memory.get(), arguments.chunk_bytes * arguments.window}));
  KVF_ASSIGN_OR_RETURN(Copies copies, Copies::Create(to_gpu, arguments));
  KVF_RETURN_IF_ERROR(sender->Round(arguments.window * 4).status());  // connects, maps memory
  KVF_RETURN_IF_ERROR(bare->Round(arguments.window * 4).status());
  KVF_RETURN_IF_ERROR(copies.Round(arguments.window * 4).status());

  std::vector<double> ours, probes, copied, to_probe, to_copy;
  for (int round = 0; round < arguments.rounds; ++round) {
    KVF_ASSIGN_OR_RETURN(const double chunks, sender->Round(arguments.chunks));
    KVF_ASSIGN_OR_RETURN(const double messages, bare->Round(arguments.chunks));
    KVF_ASSIGN_OR_RETURN(const double copy, copies.Round(arguments.chunks));
    ours.push_back(chunks);
    probes.push_back(messages);
    copied.push_back(copy);
    to_probe.push_back(chunks / messages);
    to_copy.push_back(chunks / copy);
  }
  const std::string what =
      absl::StrCat("checked and acknowledged chunks of ", arguments.chunk_bytes, " B, ",
                   to_gpu == 0 ? "within one GPU" : absl::StrCat("GPU 0 to GPU ", to_gpu));
  const nlohmann::json details = {
      {"gpu", device.name},
      {"gpus", to_gpu + 1},
      {"path", sender->path()},
      {"chunk_bytes", arguments.chunk_bytes},
      {"window", arguments.window},
      {"poll_us", arguments.poll_us},
      {"chunks_per_round", arguments.chunks},
      {"checksum", "crc32c, verified by the receiving GPU with the copy to pages"},
      {"settings", ProbeOptions(arguments).settings},
      {"transport_gb_per_s", ToJson(Summarize(ours))},
      {"probe_gb_per_s", ToJson(Summarize(probes))},
      {"copy_gb_per_s", ToJson(Summarize(copied))}};
  const auto add = [&](const std::vector<double>& ratios, const std::string& baseline,
                       const std::string& bar) {
    nlohmann::json row = details;
    row["ratio"] = ToJson(Summarize(ratios));
    report.AddRatio(what, Summarize(ratios).median, baseline, bar, row);
  };
  add(to_probe, "bare UCX Active Messages with the same window", ">= 0.9");
  add(to_copy,
      to_gpu == 0 ? "cudaMemcpyPeerAsync, which stays on the one GPU" : "cudaMemcpyPeerAsync",
      to_gpu == 0 ? "none" : ">= 0.85");
  return report.Write(arguments.out);
}

int Run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Chunks from GPU to GPU through transport/ucx against bare UCX and plain copies.");
  app.add_option("--out", arguments.out, "Where to write the JSON report.");
  app.add_option("--chunk-bytes", arguments.chunk_bytes, "Payload of one chunk.");
  app.add_option("--window", arguments.window, "Chunks in flight.");
  app.add_option("--chunks", arguments.chunks, "Chunks in one round.");
  app.add_option("--rounds", arguments.rounds, "Rounds of each.");
  app.add_option("--poll-us", arguments.poll_us,
                 "How long the transport polls before it sleeps, in microseconds.");
  CLI11_PARSE(app, argc, argv);

  const ForkedPeer receiver([&](int fd) { return RunReceiver(fd, arguments); });
  const ForkedPeer probe([&](int fd) { return RunProbe(fd, arguments); });
  Report report("gpu_transfer", argc, argv);
  const absl::Status status = Measure(arguments, receiver.fd(), probe.fd(), report);
  if (!status.ok()) std::cerr << "gpu_transfer_bench: " << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
