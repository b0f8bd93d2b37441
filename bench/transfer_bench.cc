#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/chunk_stream.h"
#include "bench/forked_peer.h"
#include "bench/report.h"
#include "bench/ucx_probe.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "transport/ucx/ucx_transport.h"

// Chunks from one process to another through transport/ucx over TCP loopback, each with its header
// sealed and checked, its checksum computed by the sender and verified by the receiver, and
// acknowledged; against ucx_perftest's Active Message bandwidth with the same UCX settings, message
// size and window, and against the same messages without a transport around them, with and without
// such checksums: what they cost on these cores. All run in turns, several times.
namespace kvferry::bench {
namespace {

using namespace transport;  // NOLINT: the bench is about this folder

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
  double poll_us = absl::ToDoubleMicroseconds(transport::UcxOptions().poll);
  std::string perftest = ".deps/ucx/libucx/bin/ucx_perftest";
  std::size_t chunk_bytes = 4 << 20;
  int window = 4, chunks = 500, rounds = 7;
};

ChunkStreamOptions StreamOptions(const Arguments& arguments) {
  return {.ucx = {.poll = absl::Microseconds(arguments.poll_us)},
          .chunk_bytes = arguments.chunk_bytes,
          .window = arguments.window,
          .check = [](std::span<const std::byte> payload) { return Crc32c(payload); }};
}

UcxProbeOptions ProbeOptions(const Arguments& arguments, bool check) {
  UcxProbeOptions options{.settings = UcxOptions().settings,
                          .message_bytes = arguments.chunk_bytes,
                          .window = arguments.window};
  if (check) options.check = [](std::span<const std::byte> payload) { return Crc32c(payload); };
  return options;
}

std::vector<std::byte> ProbeMemory(const Arguments& arguments) {
  return std::vector<std::byte>(arguments.chunk_bytes * arguments.window, std::byte{42});
}

// A child that receives from a probe.
ForkedPeer ProbeReceiver(const Arguments& arguments, bool check) {
  return ForkedPeer([=](int fd) {
    std::vector<std::byte> memory = ProbeMemory(arguments);
    return ReceiveProbe(fd, ProbeOptions(arguments, check), memory);
  });
}

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

// What the transport is compared with, and the bar.
struct Baseline {
  std::string name, bar;
  std::function<absl::StatusOr<double>()> round;  // GB/s
  std::vector<double> gb_per_s = {}, ratios = {};
};

// The sockets of receivers: of the transport, of a probe, of a probe that checks.
struct Sockets {
  int chunks, plain, checked;
};

absl::Status Measure(const Arguments& arguments, const Sockets& sockets, Report& report) {
  KVF_ASSIGN_OR_RETURN(const auto sender,
                       ChunkSender::Create(sockets.chunks, StreamOptions(arguments)));
  std::vector<std::byte> plain_memory = ProbeMemory(arguments);
  std::vector<std::byte> checked_memory = ProbeMemory(arguments);
  KVF_ASSIGN_OR_RETURN(
      const auto plain,
      UcxProbe::Create(sockets.plain, ProbeOptions(arguments, false), plain_memory));
  KVF_ASSIGN_OR_RETURN(
      const auto checked,
      UcxProbe::Create(sockets.checked, ProbeOptions(arguments, true), checked_memory));
  const int warm_up = arguments.window * 4;  // connects, touches memory
  KVF_RETURN_IF_ERROR(sender->Round(warm_up).status());
  KVF_RETURN_IF_ERROR(plain->Round(warm_up).status());
  KVF_RETURN_IF_ERROR(checked->Round(warm_up).status());
  // Without -e perftest's endpoints are not in error mode PEER: UCX then writes into the receiver's
  // memory by PUT, and nobody notices a dead peer.
  std::vector<Baseline> baselines = {
      {"ucx_perftest ucp_am_bw in our error mode", ">= 0.85",
       [&] { return BestPerftestRound(arguments, "-e"); }},
      {"ucx_perftest ucp_am_bw without error handling", "none",
       [&] { return BestPerftestRound(arguments, ""); }},
      {"bare UCX Active Messages", "none", [&] { return plain->Round(arguments.chunks); }},
      {"bare UCX Active Messages with the same checksums", "none",
       [&] { return checked->Round(arguments.chunks); }}};
  std::vector<double> ours;
  for (int round = 0; round < arguments.rounds; ++round) {
    KVF_ASSIGN_OR_RETURN(const double transport, sender->Round(arguments.chunks));
    ours.push_back(transport);
    for (Baseline& baseline : baselines) {
      KVF_ASSIGN_OR_RETURN(const double other, baseline.round());
      baseline.gb_per_s.push_back(other);
      baseline.ratios.push_back(transport / other);
    }
  }
  nlohmann::json settings;
  for (const auto& [name, value] : UcxOptions().settings) settings["UCX_" + name] = value;
  for (const Baseline& baseline : baselines) {
    report.AddRatio(absl::StrCat("chunks of ", arguments.chunk_bytes, " B over TCP loopback"),
                    Summarize(baseline.ratios).median, baseline.name, baseline.bar,
                    {{"chunk_bytes", arguments.chunk_bytes},
                     {"window", arguments.window},
                     {"poll_us", arguments.poll_us},
                     {"chunks_per_round", arguments.chunks},
                     {"checksum", "crc32c, computed and verified"},
                     {"perftest_wait", "the faster of poll and sleep in each round"},
                     {"settings", settings},
                     {"ratio", ToJson(Summarize(baseline.ratios))},
                     {"transport_gb_per_s", ToJson(Summarize(ours))},
                     {"baseline_gb_per_s", ToJson(Summarize(baseline.gb_per_s))}});
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
  app.add_option("--poll-us", arguments.poll_us,
                 "How long the transport polls before it sleeps, in microseconds.");
  CLI11_PARSE(app, argc, argv);

  // Before there are threads.
  const ForkedPeer chunks([&](int fd) { return ReceiveChunks(fd, StreamOptions(arguments)); });
  const ForkedPeer plain = ProbeReceiver(arguments, false);
  const ForkedPeer checked = ProbeReceiver(arguments, true);
  Report report("transfer", argc, argv);
  const absl::Status status = Measure(arguments, {chunks.fd(), plain.fd(), checked.fd()}, report);
  if (!status.ok()) std::cerr << "transfer_bench: " << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
