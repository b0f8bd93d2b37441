#include "router/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvferry::router {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr MonoTime kStart = absl::Seconds(100);

WorkerInfo Info(const std::string& name, std::uint64_t incarnation,
                WorkerKind kind = WorkerKind::kDecode) {
  return {.kind = kind,
          .name = name,
          .incarnation = Incarnation{incarnation},
          .control_address = "127.0.0.1:1",
          .codecs = {"fp16"},
          .max_context_tokens = 100};
}

class RegistryTest : public testing::Test {
 protected:
  Attachment Join(const WorkerInfo& info, MonoTime now = kStart) {
    auto joined = registry_.Join(info, now);
    EXPECT_TRUE(joined.ok()) << joined.status();
    return joined->attachment;
  }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const auto& [attachment, worker] : registry_.workers()) names.push_back(worker.info.name);
    return names;
  }
  // As the service does: often enough.
  std::vector<std::string> ExpireUntil(MonoTime begin, MonoTime end) {
    std::vector<std::string> lost;
    for (MonoTime now = begin; now <= end; now += absl::Milliseconds(100)) {
      for (const Worker& worker : registry_.Expire(now)) lost.push_back(worker.info.name);
    }
    return lost;
  }

  Registry registry_{{.silence = absl::Milliseconds(1500),
                      .stall = absl::Seconds(20),
                      .check_interval = absl::Milliseconds(100)}};
};

TEST_F(RegistryTest, JoinNeedsEveryField) {
  struct Case {
    void (*spoil)(WorkerInfo&);
    const char* field;
  };
  const Case cases[] = {
      {[](WorkerInfo& info) { info.name.clear(); }, "join.name"},
      {[](WorkerInfo& info) { info.incarnation = Incarnation{}; }, "join.incarnation"},
      {[](WorkerInfo& info) { info.control_address.clear(); }, "join.control_address"},
      {[](WorkerInfo& info) { info.codecs.clear(); }, "join.codecs"},
  };
  for (const Case& c : cases) {
    WorkerInfo info = Info("a", 1);
    c.spoil(info);
    const auto joined = registry_.Join(info, kStart);
    EXPECT_TRUE(absl::IsInvalidArgument(joined.status()));
    EXPECT_THAT(std::string(joined.status().message()), HasSubstr(c.field));
  }
  EXPECT_TRUE(registry_.workers().empty());
}

TEST_F(RegistryTest, ASilentWorkerIsLostAfterTheLimitAndNotBefore) {
  Join(Info("a", 1));
  EXPECT_TRUE(ExpireUntil(kStart, kStart + absl::Milliseconds(1400)).empty());
  EXPECT_THAT(ExpireUntil(kStart + absl::Milliseconds(1500), kStart + absl::Milliseconds(1500)),
              UnorderedElementsAre("a"));
  EXPECT_TRUE(registry_.workers().empty());
}

TEST_F(RegistryTest, ReportsKeepAWorkerAttached) {
  const Attachment a = Join(Info("a", 1));
  Join(Info("b", 2));
  for (int i = 1; i <= 30; ++i) {
    const MonoTime now = kStart + i * absl::Milliseconds(100);
    EXPECT_EQ(registry_.Report(a, {.free_pages = 7}, now), Registry::ReportResult::kOk);
    registry_.Expire(now);
  }
  EXPECT_THAT(Names(), UnorderedElementsAre("a"));
  EXPECT_EQ(registry_.Find(Incarnation{1})->load.free_pages, 7u);
  EXPECT_EQ(registry_.Find(Incarnation{2}), nullptr);
}

TEST_F(RegistryTest, NobodyIsBlamedForTimeInWhichTheRouterDidNotRun) {
  Join(Info("a", 1));
  registry_.Expire(kStart + absl::Milliseconds(100));
  // The router was stopped for ten seconds.
  const MonoTime back = kStart + absl::Seconds(10);
  EXPECT_TRUE(registry_.Expire(back).empty());
  // From here on silence counts again.
  EXPECT_THAT(ExpireUntil(back + absl::Milliseconds(100), back + absl::Milliseconds(1500)),
              UnorderedElementsAre("a"));
}

TEST_F(RegistryTest, ASilentWorkerThatComesBackRejoins) {
  const Attachment first = Join(Info("a", 1));
  ExpireUntil(kStart, kStart + absl::Seconds(2));
  EXPECT_EQ(registry_.Report(first, {}, kStart + absl::Seconds(3)),
            Registry::ReportResult::kUnknown)
      << "its stream is over: it has to join again";
  const Attachment second = Join(Info("a", 1), kStart + absl::Seconds(3));
  EXPECT_NE(first, second);
  EXPECT_TRUE(registry_.Leave(first).empty()) << "the old stream's end is no news";
  EXPECT_THAT(Names(), UnorderedElementsAre("a"));
  EXPECT_FALSE(registry_.Find(Incarnation{1})->reported);
}

TEST_F(RegistryTest, ARestartedWorkerReplacesTheOldRun) {
  Join(Info("a", 1));
  auto joined = registry_.Join(Info("a", 2), kStart);
  ASSERT_TRUE(joined.ok());
  ASSERT_EQ(joined->replaced.size(), 1u);
  EXPECT_EQ(joined->replaced[0].info.incarnation, Incarnation{1});
  EXPECT_EQ(registry_.Find(Incarnation{1}), nullptr);
  EXPECT_NE(registry_.Find(Incarnation{2}), nullptr);
}

TEST_F(RegistryTest, TheSameRunUnderANewStreamReplacesItselfAndStaysDrained) {
  const Attachment first = Join(Info("a", 1));
  ASSERT_TRUE(registry_.RequestDrain("a").ok());
  auto joined = registry_.Join(Info("a", 1), kStart);
  ASSERT_TRUE(joined.ok());
  EXPECT_EQ(joined->replaced.size(), 1u);
  EXPECT_TRUE(registry_.Find(Incarnation{1})->draining());
  EXPECT_TRUE(registry_.Leave(first).empty());
  // Another run of that name is another worker.
  Join(Info("a", 2));
  EXPECT_FALSE(registry_.Find(Incarnation{2})->draining());
}

TEST_F(RegistryTest, LeaveReturnsTheWorkerOnce) {
  const Attachment a = Join(Info("a", 1));
  EXPECT_EQ(registry_.Leave(a).size(), 1u);
  EXPECT_TRUE(registry_.Leave(a).empty());
  EXPECT_TRUE(registry_.Leave(Attachment::kNone).empty());
}

TEST_F(RegistryTest, AStallIsToldOnceAndEnds) {
  const Attachment a = Join(Info("a", 1));
  using Result = Registry::ReportResult;
  EXPECT_EQ(registry_.Report(a, {.engine_stall = absl::Seconds(19)}, kStart), Result::kOk);
  EXPECT_EQ(registry_.Report(a, {.engine_stall = absl::Seconds(20)}, kStart), Result::kStalled);
  EXPECT_EQ(registry_.Report(a, {.engine_stall = absl::Seconds(21)}, kStart), Result::kOk);
  EXPECT_TRUE(registry_.Find(Incarnation{1})->stalled);
  EXPECT_EQ(registry_.Report(a, {}, kStart), Result::kOk);
  EXPECT_FALSE(registry_.Find(Incarnation{1})->stalled);
  EXPECT_EQ(registry_.Report(a, {.engine_stall = absl::Minutes(1)}, kStart), Result::kStalled);
}

TEST_F(RegistryTest, MorePagesThanAtTheRefusalEndItEarly) {
  const Attachment a = Join(Info("a", 1));
  registry_.Report(a, {.free_pages = 5}, kStart);
  Worker& worker = *registry_.Find(Incarnation{1});
  worker.refused_until = kStart + absl::Seconds(10);
  worker.refused_free_pages = 5;
  registry_.Report(a, {.free_pages = 5}, kStart);
  EXPECT_GT(worker.refused_until, kStart);
  registry_.Report(a, {.free_pages = 6}, kStart);
  EXPECT_LT(worker.refused_until, kStart);
}

TEST_F(RegistryTest, DrainOfAnUnknownWorkerListsTheAttached) {
  EXPECT_THAT(std::string(registry_.RequestDrain("x").message()), HasSubstr("none"));
  Join(Info("a", 1));
  Join(Info("b", 2));
  const absl::Status status = registry_.RequestDrain("x");
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("a, b"));
}

TEST_F(RegistryTest, KnownAndMadeCodecsStayWhenTheirWorkersHaveLeft) {
  WorkerInfo decode = Info("d", 1);
  decode.codecs = {"kivi-2"};
  const Attachment attachment = Join(decode);
  WorkerInfo prefill = Info("p", 2, WorkerKind::kPrefill);
  prefill.codecs = {"int8"};
  const Attachment maker = Join(prefill);
  registry_.Leave(attachment);
  registry_.Leave(maker);
  EXPECT_THAT(registry_.known_codecs(), UnorderedElementsAre("kivi-2"));
  EXPECT_THAT(registry_.made_codecs(), UnorderedElementsAre("int8"));
}

}  // namespace
}  // namespace kvferry::router
