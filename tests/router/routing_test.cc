#include "router/routing.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvferry::router {
namespace {

constexpr MonoTime kNow = absl::Seconds(100);

class RoutingTest : public testing::Test {
 protected:
  Worker& Add(WorkerKind kind, const std::string& name, std::uint64_t incarnation,
              const WorkerLoad& load, std::vector<std::string> codecs) {
    WorkerInfo info{.kind = kind,
                    .name = name,
                    .incarnation = Incarnation{incarnation},
                    .control_address = "h:1",
                    .codecs = std::move(codecs),
                    .max_context_tokens = 1000};
    const Attachment attachment = registry_.Join(info, kNow)->attachment;
    registry_.Report(attachment, load, kNow);
    return registry_.workers().at(attachment);
  }
  Worker& AddDecode(std::uint64_t n, const WorkerLoad& load = {.free_pages = 100}) {
    return Add(WorkerKind::kDecode, absl::StrCat("d", n), n, load, {"fp16"});
  }
  Worker& AddPrefill(std::uint64_t n, const WorkerLoad& load = {}) {
    return Add(WorkerKind::kPrefill, absl::StrCat("p", n), n, load, {"fp16", "kivi-2", "kivi-4"});
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

TEST_F(RoutingTest, MadeAs) {
  EXPECT_EQ(MadeAs("fp16"), "fp16");
  EXPECT_EQ(MadeAs("kivi-2:sinks=8,layer.0=8/8"), "kivi-2");
  EXPECT_EQ(MadeAs("kvtuner:c3"), "kvtuner:c3");
  EXPECT_EQ(MadeAs("kvtuner:c3:recent=64"), "kvtuner:c3");
  EXPECT_EQ(MadeAs("cq-4c8b"), "cq-4c8b");
  EXPECT_EQ(MadeAs("cq-4c8b:codebooks=0123456789abcdef"), "cq-4c8b:codebooks=0123456789abcdef");
  EXPECT_EQ(MadeAs("cq-4c8b:recent=64,codebooks=0123456789abcdef,layer.0=1/1"),
            "cq-4c8b:codebooks=0123456789abcdef");
}

constexpr char kBooks[] = "cq-4c8b:codebooks=00000000000000aa";
constexpr char kBooksWithWindow[] = "cq-4c8b:recent=64,codebooks=00000000000000aa";
constexpr char kOtherBooks[] = "cq-4c8b:codebooks=00000000000000bb";

// Of several prefill workers only some have read the codebooks of a pool's codec.
class CodebooksRoutingTest : public RoutingTest, public testing::WithParamInterface<const char*> {
 protected:
  std::string codec() const { return GetParam(); }
  Worker& AddPool(std::uint64_t n, const std::string& codec) {
    return Add(WorkerKind::kDecode, absl::StrCat("d", n), n, {.free_pages = 100}, {codec});
  }
  Worker& AddMaker(std::uint64_t n, std::vector<std::string> codecs, const WorkerLoad& load = {}) {
    return Add(WorkerKind::kPrefill, absl::StrCat("p", n), n, load, std::move(codecs));
  }
};

INSTANTIATE_TEST_SUITE_P(Pools, CodebooksRoutingTest, testing::Values(kBooks, kBooksWithWindow));

TEST_P(CodebooksRoutingTest, OnlyWhoHasThem) {
  AddPool(1, codec());
  AddMaker(11, {"fp16", "kivi-4"});
  AddMaker(12, {"fp16", "cq-4c8b", "cq-8c8b:codebooks=00000000000000aa", kOtherBooks});
  Worker& with = AddMaker(13, {"fp16", kBooks, kOtherBooks}, {.queued_tokens = 9000});
  ExpectRoute(1, 13);
  ExpectRoute(1, 13, {.codec = codec()});
  ExpectRoute(1, 13, {.codec = codec(), .avoid = {Incarnation{13}}});
  with.refused_until = kNow + absl::Seconds(1);
  ExpectNone(NoRoute::kFull, {.codec = codec()});
  with.load.draining = true;
  ExpectNone(NoRoute::kNoPrefill);
}

TEST_P(CodebooksRoutingTest, EachPoolHasItsOwn) {
  Worker& first = AddPool(1, codec());
  AddPool(2, kOtherBooks);
  AddMaker(11, {kOtherBooks});
  AddMaker(12, {kBooks}, {.queued_tokens = 9000});
  ExpectRoute(1, 12);
  ExpectRoute(2, 11, {.codec = kOtherBooks});
  first.own_requests = 1;
  ExpectRoute(2, 11);
}

TEST_P(CodebooksRoutingTest, NobodyHasThem) {
  const Worker& pool = AddPool(1, codec());
  ExpectNone(NoRoute::kNoPrefill);  // nobody is there yet who could say
  EXPECT_FALSE(HasPrefill(registry_, pool));
  Worker& without = AddMaker(11, {"fp16", kOtherBooks});
  ExpectNone(NoRoute::kNotMade);
  ExpectNone(NoRoute::kNotMade, {.codec = codec()});
  EXPECT_FALSE(HasPrefill(registry_, pool));
  without.reported = false;
  ExpectNone(NoRoute::kNoPrefill);
  without.reported = true;
  // Another pool takes whom any codec suits, and is worth waiting for.
  const Attachment other = AddPool(2, "fp16").attachment;
  ExpectRoute(2, 11);
  ExpectNone(NoRoute::kNotMade, {.codec = codec()});
  registry_.Leave(other);
  ExpectNone(NoRoute::kNoPrefill);
}

TEST_P(CodebooksRoutingTest, WhoHasThemMayComeBack) {
  const Worker& pool = AddPool(1, codec());
  AddMaker(11, {"fp16"});
  const Attachment with = AddMaker(12, {kBooks}).attachment;
  ExpectRoute(1, 12);
  EXPECT_TRUE(HasPrefill(registry_, pool));
  registry_.Leave(with);
  ExpectNone(NoRoute::kNoPrefill);
  EXPECT_FALSE(HasPrefill(registry_, pool));
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
