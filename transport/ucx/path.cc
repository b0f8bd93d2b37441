#include "transport/ucx/path.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/string_view.h"

namespace kvferry::transport {
namespace {

constexpr char kCudaIpc[] = "cuda_ipc";

// As far as `from` knows.
bool CannotReach(const UcxAddress& from, const UcxAddress& to) {
  const std::vector<std::uint64_t>& others = from.unreachable;
  return std::find(others.begin(), others.end(), to.gpu) != others.end();
}

// Why a GPU's memory cannot be read by the peer; empty: it can. The same for either side.
std::string DeviceObstacle(const UcxAddress& local, const UcxAddress& peer) {
  if (peer.gpu == 0) return "the peer has its payloads in host memory";
  if (peer.host != local.host) return "the peer is on another host";
  if (peer.process == local.process) return "the peer is in the same process";
  if (CannotReach(local, peer) || CannotReach(peer, local)) {
    return "the GPUs of the two have no access to each other (nvidia-smi topo -p2p r)";
  }
  return "";
}

}  // namespace

absl::StatusOr<std::vector<Path>> OfferPaths(std::string_view tls, bool device_memory,
                                             std::string_view required) {
  const absl::string_view names = ToAbsl(tls);
  const bool shared = absl::StrContains(names, "posix") || absl::StrContains(names, "sysv");
  std::vector<Path> paths;
  if (device_memory) paths.push_back({MemoryKind::kDevice, kCudaIpc});
  paths.push_back({MemoryKind::kHost, shared ? "shm" : "tcp_host"});
  if (required.empty()) return paths;
  std::vector<std::string> labels;
  for (const Path& path : paths) labels.push_back(path.label);
  std::erase_if(paths, [&](const Path& path) { return path.label != required; });
  if (!paths.empty()) return paths;
  return absl::FailedPreconditionError(absl::StrCat(
      "transport.required is \"", ToAbsl(required), "\", but this process has ",
      absl::StrJoin(labels, ", "),
      required == kCudaIpc ? ": its payloads are in host memory (model.device, transport.memory)"
                           : ""));
}

std::string WithCuda(const std::string& tls) {
  std::string with = tls;
  for (const char* name : {"cuda_copy", kCudaIpc}) {
    if (tls != "all" && !absl::StrContains(tls, name)) absl::StrAppend(&with, ",", name);
  }
  return with;
}

absl::StatusOr<Path> ChoosePath(const std::vector<Path>& paths, const UcxAddress& local,
                                const UcxAddress& peer) {
  std::string obstacle;
  for (const Path& path : paths) {
    if (path.memory == MemoryKind::kHost) return path;
    obstacle = DeviceObstacle(local, peer);
    if (obstacle.empty()) return path;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("transport.required is \"", paths.front().label, "\", but ", obstacle));
}

absl::Status CheckLanes(const std::vector<std::string>& lanes, std::string_view peer,
                        const Path& path) {
  if (path.memory == MemoryKind::kHost) return absl::OkStatus();
  const auto wanted = [](const std::string& lane) { return absl::StartsWith(lane, kCudaIpc); };
  if (std::any_of(lanes.begin(), lanes.end(), wanted)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("connection to ", ToAbsl(peer), ": ", path.label, " is missing, UCX has only ",
                   absl::StrJoin(lanes, ", "), "; transport.memory: \"host\" does without"));
}

}  // namespace kvferry::transport
