#include "router/routing.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace kvferry::router {
namespace {

constexpr MonoTime kNow = absl::Seconds(100);

class RoutingTest : public testing::Test {
 protected:
  Worker& Add(WorkerKind kind, const std::string& name, std::uint64_t incarnation,
              const WorkerLoad& load = {.free_pages = 100, .total_pages = 100}) {
    WorkerInfo info{.kind = kind,
                    .name = name,
                    .incarnation = Incarnation{incarnation},
                    .control_address = "h:1",
                    .codecs = {"fp16"},
                    .max_context_tokens = 1000};
    if (kind == WorkerKind::kPrefill) info.codecs = {"fp16", "kivi-2", "kivi-4"};
    const Attachment attachment = registry_.Join(info, kNow)->attachment;
    registry_.Report(attachment, load, kNow);
    return registry_.workers().at(attachment);
  }
  Worker& AddDecode(std::uint64_t n, const WorkerLoad& load = {.free_pages = 100}) {
    return Add(WorkerKind::kDecode, absl::StrCat("d", n), n, load);
  }
  Worker& AddPrefill(std::uint64_t n, const WorkerLoad& load = {}) {
    return Add(WorkerKind::kPrefill, absl::StrCat("p", n), n, load);
  }
  RouteResult Choose(const RouteRequest& request = {}) {
    return ChooseRoute(registry_, request, kNow);
  }
  void ExpectRoute(std::uint64_t decode, std::uint64_t prefill, const RouteRequest& request = {}) {
    const RouteResult result = Choose(request);
    ASSERT_TRUE(result.route.has_value()) << static_cast<int>(result.why);
    EXPECT_EQ(result.route->decode, Incarnation{decode});
    EXPECT_EQ(result.route->prefill, Incarnation{prefill});
  }
  void ExpectNone(NoRoute why, const RouteRequest& request = {}) {
    const RouteResult result = Choose(request);
    EXPECT_FALSE(result.route.has_value());
    EXPECT_EQ(result.why, why);
  }

  Registry registry_{{}};
};

TEST_F(RoutingTest, NobodyThere) {
  ExpectNone(NoRoute::kNoDecode);
  AddPrefill(11);
  ExpectNone(NoRoute::kNoDecode);
}

TEST_F(RoutingTest, NoPrefill) {
  AddDecode(1);
  ExpectNone(NoRoute::kNoPrefill);
}

TEST_F(RoutingTest, FewestRequestsThenMostPages) {
  AddDecode(1, {.running_requests = 3, .free_pages = 900});
  AddDecode(2, {.queued_requests = 1, .running_requests = 1, .free_pages = 10});
  AddDecode(3, {.running_requests = 2, .free_pages = 20});
  AddPrefill(11);
  ExpectRoute(3, 11);
}

TEST_F(RoutingTest, OwnRequestsCountBeforeTheNextReport) {
  AddDecode(1).own_requests = 2;
  AddDecode(2, {.running_requests = 1, .free_pages = 1});
  AddPrefill(11).own_tokens = 500;
  AddPrefill(12, {.queued_tokens = 400});
  ExpectRoute(2, 12);
}

TEST_F(RoutingTest, EqualsTakeTurns) {
  Worker& first = AddDecode(1);
  AddDecode(2);
  Worker& prefill = AddPrefill(11);
  AddPrefill(12);
  ExpectRoute(1, 11);
  first.assigned_total = 1;
  prefill.assigned_total = 1;
  ExpectRoute(2, 12);
}

TEST_F(RoutingTest, AvoidedOnlyIfThereIsAnother) {
  AddDecode(1);
  AddPrefill(11);
  const RouteRequest request{.avoid = {Incarnation{1}, Incarnation{11}}};
  ExpectRoute(1, 11, request);
  AddDecode(2, {.running_requests = 50});
  AddPrefill(12, {.queued_tokens = 5000});
  ExpectRoute(2, 12, request);
}

TEST_F(RoutingTest, DrainingStalledAndUnreportedGetNothing) {
  Worker& decode = AddDecode(1);
  AddPrefill(11);
  decode.drain_requested = true;
  ExpectNone(NoRoute::kNoDecode);
  decode.drain_requested = false;
  decode.load.draining = true;
  ExpectNone(NoRoute::kNoDecode);
  decode.load.draining = false;
  decode.stalled = true;
  ExpectNone(NoRoute::kNoDecode);
  decode.stalled = false;
  decode.reported = false;
  ExpectNone(NoRoute::kNoDecode);
  decode.reported = true;
  ExpectRoute(1, 11);
}

TEST_F(RoutingTest, CodecOfTheRequestOrOfTheDecodeWorker) {
  Worker& decode = AddDecode(1);
  Worker& prefill = AddPrefill(11);
  ExpectNone(NoRoute::kNoDecode, {.codec = "kivi-2"});
  decode.info.codecs = {"kivi-2"};
  ExpectRoute(1, 11, {.codec = "kivi-2"});
  prefill.info.codecs = {"fp16"};
  ExpectNone(NoRoute::kNoPrefill, {.codec = "kivi-2"});
  ExpectNone(NoRoute::kNoPrefill);
  // Parameters are the decode worker's choice; prefill has the plain codec.
  decode.info.codecs = {"fp16:sinks=8"};
  ExpectRoute(1, 11);
  ExpectRoute(1, 11, {.codec = "fp16:sinks=8"});
}

TEST_F(RoutingTest, ADecodeWorkerWithoutAPrefillForItsCodecIsPassedOver) {
  AddDecode(1).info.codecs = {"int8"};
  AddDecode(2, {.running_requests = 9});
  AddPrefill(11);
  ExpectRoute(2, 11);
}

TEST_F(RoutingTest, Context) {
  AddDecode(1);
  AddPrefill(11);
  ExpectRoute(1, 11, {.sequence_tokens = 1000});
  ExpectNone(NoRoute::kContext, {.sequence_tokens = 1001});
  AddDecode(2, {.running_requests = 9}).info.max_context_tokens = 0;
  registry_.Find(Incarnation{11})->info.max_context_tokens = 0;
  ExpectRoute(2, 11, {.sequence_tokens = 1001});
}

TEST_F(RoutingTest, RefusedUntil) {
  AddDecode(1).refused_until = kNow + absl::Seconds(1);
  AddPrefill(11);
  ExpectNone(NoRoute::kFull);
  EXPECT_EQ(Choose().retry_at, kNow + absl::Seconds(1));
  AddDecode(2, {.running_requests = 50}).refused_until = kNow;
  ExpectRoute(2, 11);
  registry_.Find(Incarnation{11})->refused_until = kNow + absl::Seconds(3);
  ExpectNone(NoRoute::kFull);
}

TEST_F(RoutingTest, NeverFits) {
  AddDecode(1);
  AddPrefill(11);
  ExpectNone(NoRoute::kNeverFits, {.never = {Incarnation{1}}});
  AddDecode(2, {.running_requests = 9});
  ExpectRoute(2, 11, {.never = {Incarnation{1}}});
}

}  // namespace
}  // namespace kvferry::router
