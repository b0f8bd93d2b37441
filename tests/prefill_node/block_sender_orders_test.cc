#include <gtest/gtest.h>

#include <cstddef>
#include <iterator>
#include <string>
#include <vector>

#include "prefill_node/block_sender.h"
#include "tests/prefill_node/sender_harness.h"

namespace kvferry::prefill {
namespace {

using transport::MessageType;

// Every sequence of events up to a length, legal or not: the promises that SenderHarness checks
// hold at each step, and from wherever it leads the transfer can end with all slots back.
struct Event {
  const char* name;
  void (*run)(SenderHarness&);
};
constexpr Event kEvents[] = {
    {"add", [](SenderHarness& h) { (void)h.Add(); }},
    {"commit", [](SenderHarness& h) { (void)h.Commit(); }},
    {"done0", [](SenderHarness& h) { (void)h.Done(0); }},
    {"done1", [](SenderHarness& h) { (void)h.Done(1); }},
    {"fail0", [](SenderHarness& h) { (void)h.Done(0, absl::UnavailableError("down")); }},
    {"ack0", [](SenderHarness& h) { (void)h.Ack(0); }},
    {"ack1", [](SenderHarness& h) { (void)h.Ack(1); }},
    {"nack0", [](SenderHarness& h) { (void)h.Nack(0); }},
    {"adopted", [](SenderHarness& h) { (void)h.Message(MessageType::kAdopted); }},
    {"peer_abort", [](SenderHarness& h) { (void)h.Message(MessageType::kAbort); }},
    {"abort_ack", [](SenderHarness& h) { (void)h.Message(MessageType::kAbortAck); }},
    {"abort", [](SenderHarness& h) { h.Abort(); }},
    {"lost", [](SenderHarness& h) { h.PeerLost(); }},
    {"expire", [](SenderHarness& h) { (void)h.Expire(); }},
};

void Explore(std::vector<int>& path, int depth) {
  SenderHarness h(1, {.max_resends = 1});
  ASSERT_TRUE(h.Grant().ok());
  std::string names;
  for (int event : path) {
    kEvents[event].run(h);
    names += std::string(" ") + kEvents[event].name;
  }
  h.Drain();
  ASSERT_FALSE(testing::Test::HasFailure()) << "after" << names;
  if (depth == 0) return;
  for (std::size_t event = 0; event < std::size(kEvents); ++event) {
    path.push_back(static_cast<int>(event));
    Explore(path, depth - 1);
    path.pop_back();
    if (testing::Test::HasFailure()) return;
  }
}

TEST(BlockSenderOrders, EveryEventOrderKeepsThePromises) {
  std::vector<int> path = {0};  // from the first chunk on
  Explore(path, 4);
  path = {0, 0, 1, 2, 5, 3};  // two chunks sent, commit, second one unacknowledged
  Explore(path, 4);
  path = {0, 2, 7};  // resent once
  Explore(path, 4);
}

}  // namespace
}  // namespace kvferry::prefill
