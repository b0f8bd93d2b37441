#include "router/routing.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/string_view.h"
#include "kvcodec/profile.h"

namespace kvferry::router {
namespace {

constexpr absl::string_view kCodebooks = "codebooks=";

bool TakesWork(const Worker& worker) {
  return worker.reported && !worker.draining() && !worker.stalled;
}

bool HasCodec(const Worker& worker, const std::string& codec) {
  const std::vector<std::string>& codecs = worker.info.codecs;
  return codec.empty() || std::find(codecs.begin(), codecs.end(), codec) != codecs.end();
}

// The names of which a prefill worker that makes `codec` lists one.
std::array<std::string, 2> ListedAs(const std::string& codec) { return {codec, MadeAs(codec)}; }

bool Makes(const Worker& worker, const std::array<std::string, 2>& names) {
  return worker.info.kind == WorkerKind::kPrefill &&
         std::any_of(names.begin(), names.end(),
                     [&worker](const std::string& name) { return HasCodec(worker, name); });
}

bool Holds(const Worker& worker, const RouteRequest& request) {
  return worker.info.max_context_tokens == 0 ||
         worker.info.max_context_tokens >= request.sequence_tokens;
}

std::uint32_t Requests(const Worker& worker) {
  return std::max(worker.load.running_requests + worker.load.queued_requests, worker.own_requests);
}

// The least is the best.
auto DecodeRank(const Worker& worker, const RouteRequest& request) {
  return std::make_tuple(request.avoid.contains(worker.info.incarnation), Requests(worker),
                         ~worker.load.free_pages, worker.assigned_total);
}
auto PrefillRank(const Worker& worker, const RouteRequest& request) {
  return std::make_tuple(request.avoid.contains(worker.info.incarnation),
                         std::max<std::uint64_t>(worker.load.queued_tokens, worker.own_tokens),
                         Requests(worker), worker.assigned_total);
}

template <typename Rank>
std::vector<const Worker*> Sorted(std::vector<const Worker*> workers, const Rank& rank) {
  std::stable_sort(workers.begin(), workers.end(),
                   [&](const Worker* a, const Worker* b) { return rank(*a) < rank(*b); });
  return workers;
}

// The decode workers that may be asked now, best first; `result` says why when there are none.
std::vector<const Worker*> DecodeCandidates(const Registry& registry, const RouteRequest& request,
                                            MonoTime now, RouteResult& result) {
  std::vector<const Worker*> candidates;
  bool any = false, holds = false, fits = false;
  for (const auto& [attachment, worker] : registry.workers()) {
    if (worker.info.kind != WorkerKind::kDecode || !TakesWork(worker) ||
        !HasCodec(worker, request.codec)) {
      continue;
    }
    any = true;
    if (!Holds(worker, request)) continue;
    holds = true;
    if (request.never.contains(worker.info.incarnation)) continue;
    fits = true;
    if (worker.refused_until > now) {
      result.retry_at = std::min(result.retry_at, worker.refused_until);
      continue;
    }
    candidates.push_back(&worker);
  }
  result.why = !any     ? NoRoute::kNoDecode
               : !holds ? NoRoute::kContext
               : !fits  ? NoRoute::kNeverFits
                        : NoRoute::kFull;
  return Sorted(std::move(candidates), [&](const Worker& w) { return DecodeRank(w, request); });
}

// Null: none; `result` says why.
const Worker* BestPrefill(const Registry& registry, const RouteRequest& request,
                          const Worker& decode, MonoTime now, RouteResult& result) {
  // The transfer is made in the decode worker's own codec when the request names none.
  const std::string& codec = request.codec.empty() ? decode.info.codecs.front() : request.codec;
  const std::array<std::string, 2> names = ListedAs(codec);
  std::vector<const Worker*> candidates;
  for (const auto& [attachment, worker] : registry.workers()) {
    if (Makes(worker, names) && TakesWork(worker) && Holds(worker, request))
      candidates.push_back(&worker);
  }
  candidates =
      Sorted(std::move(candidates), [&](const Worker& w) { return PrefillRank(w, request); });
  result.why = NoRoute::kNoPrefill;
  for (const Worker* worker : candidates) {
    if (worker->refused_until <= now) return worker;
    result.why = NoRoute::kFull;
    result.retry_at = std::min(result.retry_at, worker->refused_until);
  }
  return nullptr;
}

// Whether waiting is in vain: the prefill workers are there, and none of this router's time makes
// what the request may go to. One that does and has left may come back.
bool NobodyMakes(const Registry& registry, const RouteRequest& request) {
  const auto made = [&registry](const std::string& codec) {
    const std::array<std::string, 2> names = ListedAs(codec);
    return std::any_of(names.begin(), names.end(), [&registry](const std::string& name) {
      return registry.made_codecs().contains(name);
    });
  };
  const auto& workers = registry.workers();
  return std::any_of(workers.begin(), workers.end(),
                     [](const auto& entry) {
                       return entry.second.info.kind == WorkerKind::kPrefill &&
                              TakesWork(entry.second);
                     }) &&
         (request.codec.empty()
              ? std::none_of(registry.known_codecs().begin(), registry.known_codecs().end(), made)
              : !made(request.codec));
}

}  // namespace

std::string MadeAs(std::string_view codec) {
  const bool is_profile = absl::StartsWith(ToAbsl(codec), ToAbsl(codec::kProfilePrefix));
  const std::size_t colon = codec.find(':', is_profile ? codec::kProfilePrefix.size() : 0);
  std::string made(codec.substr(0, colon));
  if (colon == std::string_view::npos) return made;
  for (const absl::string_view parameter : absl::StrSplit(ToAbsl(codec.substr(colon + 1)), ',')) {
    if (absl::StartsWith(parameter, kCodebooks)) absl::StrAppend(&made, ":", parameter);
  }
  return made;
}

bool HasPrefill(const Registry& registry, const Worker& decode) {
  const std::array<std::string, 2> names = ListedAs(decode.info.codecs.front());
  const auto& workers = registry.workers();
  return std::any_of(workers.begin(), workers.end(),
                     [&names](const auto& entry) { return Makes(entry.second, names); });
}

RouteResult ChooseRoute(const Registry& registry, const RouteRequest& request, MonoTime now) {
  RouteResult result;
  for (const Worker* decode : DecodeCandidates(registry, request, now, result)) {
    if (const Worker* prefill = BestPrefill(registry, request, *decode, now, result)) {
      result.route =
          Route{.decode = decode->info.incarnation, .prefill = prefill->info.incarnation};
      return result;
    }
  }
  if (result.why == NoRoute::kNoPrefill && NobodyMakes(registry, request))
    result.why = NoRoute::kNotMade;
  return result;
}

}  // namespace kvferry::router
