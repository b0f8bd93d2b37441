#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "common/clock.h"
#include "common/ids.h"
#include "router/registry.h"

namespace kvferry::router {

// What a request needs of its workers.
struct RouteRequest {
  std::string codec;                  // empty: any
  std::uint32_t sequence_tokens = 0;  // prompt and growth
  std::set<Incarnation> avoid;        // failed in the last attempt: taken if nobody else is there
  std::set<Incarnation> never;        // have said that it can never fit
};

struct Route {
  Incarnation decode{};
  Incarnation prefill{};
};

// Why there is no route now.
enum class NoRoute {
  kNoDecode,   // none attached that serves the codec and takes new work
  kNoPrefill,  // none attached that makes the codec and takes new work
  kNotMade,    // those attached do not make it, and no other has since this router started
  kContext,    // those attached hold shorter sequences only
  kFull,       // all have refused lately; `retry_at`
  kNeverFits,  // every decode worker has said so
};

struct RouteResult {
  std::optional<Route> route;
  NoRoute why = NoRoute::kNoDecode;
  MonoTime retry_at = absl::InfiniteDuration();  // kFull
};

// Picks the decode worker with the fewest requests, then the most free pages, and the prefill
// worker with the fewest prompt tokens to compute, then the fewest requests; of equals the one that
// has had the least so far. Draining, stalled and not yet reported workers get nothing. Pure.
RouteResult ChooseRoute(const Registry& registry, const RouteRequest& request, MonoTime now);

// What a prefill worker lists that makes `codec`: its name without parameters, all but the
// codebooks. "kivi-2:sinks=8" is made by who has "kivi-2", "kvtuner:c3:recent=64" by "kvtuner:c3",
// "cq-4c8b:recent=64,codebooks=HASH" by "cq-4c8b:codebooks=HASH".
std::string MadeAs(std::string_view codec);

// Whether an attached prefill worker makes the codec of this decode worker.
bool HasPrefill(const Registry& registry, const Worker& decode);

}  // namespace kvferry::router
