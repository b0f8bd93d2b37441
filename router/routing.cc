#include "router/routing.h"

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

namespace kvferry::router {
namespace {

bool TakesWork(const Worker& worker) {
  return worker.reported && !worker.draining() && !worker.stalled;
}

bool HasCodec(const Worker& worker, const std::string& codec) {
  const std::vector<std::string>& codecs = worker.info.codecs;
  return codec.empty() || std::find(codecs.begin(), codecs.end(), codec) != codecs.end();
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
  // The transfer is made in the decode worker's own codec when the request names none. A prefill
  // worker lists plain names; "kivi-2-g64:sinks=8" is a parametrization of one of them.
  const std::string& codec = request.codec.empty() ? decode.info.codecs.front() : request.codec;
  const std::string plain = codec.substr(0, codec.find(':'));
  std::vector<const Worker*> candidates;
  for (const auto& [attachment, worker] : registry.workers()) {
    if (worker.info.kind == WorkerKind::kPrefill && TakesWork(worker) && Holds(worker, request) &&
        (HasCodec(worker, codec) || HasCodec(worker, plain))) {
      candidates.push_back(&worker);
    }
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

}  // namespace

RouteResult ChooseRoute(const Registry& registry, const RouteRequest& request, MonoTime now) {
  RouteResult result;
  for (const Worker* decode : DecodeCandidates(registry, request, now, result)) {
    if (const Worker* prefill = BestPrefill(registry, request, *decode, now, result)) {
      result.route =
          Route{.decode = decode->info.incarnation, .prefill = prefill->info.incarnation};
      return result;
    }
  }
  return result;
}

}  // namespace kvferry::router
