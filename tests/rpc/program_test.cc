#include "rpc/program.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <iostream>
#include <thread>

#include "kvferry/v1/config.pb.h"

namespace kvferry::rpc {
namespace {

// Serves nothing; says on stderr what is done with it.
class FakeNode final : public ServingNode {
 public:
  ~FakeNode() override {
    if (lost_.joinable()) lost_.join();
    std::cerr << "destroyed\n";
  }
  const std::string& address() const override { return address_; }
  Incarnation incarnation() const override { return Incarnation{1}; }
  void Drain() override { std::cerr << "drained\n"; }
  bool idle() const override { return true; }
  void Shutdown() override { std::cerr << "stopped\n"; }

  void LoseSoon(const Program::OnLost& on_lost) {
    lost_ = std::thread([on_lost] {
      on_lost(absl::UnavailableError("the GPU has fallen off"));
      on_lost(absl::UnavailableError("a second time"));
    });
  }

 private:
  const std::string address_ = "127.0.0.1:1";
  std::thread lost_;
};

// In a process of its own.
[[noreturn]] void RunFake(bool loses) {
  v1::DecodeConfig config;
  char name[] = "kvferry-fake";
  char* argv[] = {name, nullptr};
  const int code = RunProgram({.name = name,
                               .config = &config,
                               .complete =
                                   [] {
                                     return Program::Logging{"fake", "error"};
                                   },
                               .start =
                                   [loses](const Program::OnLost& on_lost) {
                                     auto node = std::make_unique<FakeNode>();
                                     if (loses) {
                                       node->LoseSoon(on_lost);
                                     } else {
                                       kill(getpid(), SIGTERM);
                                     }
                                     return node;
                                   }},
                              1, argv);
  std::exit(code);
}

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(ProgramTest, ASignalDrainsStopsAndExitsWithZero) {
  EXPECT_EXIT(RunFake(false), ::testing::ExitedWithCode(0), "drained\nstopped\ndestroyed\n");
}

TEST_F(ProgramTest, ALostNodeIsStoppedAndExitsWithOneAndTheReason) {
  EXPECT_EXIT(RunFake(true), ::testing::ExitedWithCode(1),
              "^stopped\nkvferry-fake: UNAVAILABLE: the GPU has fallen off\n$");
}

}  // namespace
}  // namespace kvferry::rpc
