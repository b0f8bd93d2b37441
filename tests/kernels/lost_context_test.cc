// A kernel that reads where nothing is takes the process's context: apart from the other tests,
// which are also run under compute-sanitizer.
#include <gmock/gmock.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>

#include "kernels/cuda/context.h"
#include "kernels/page_table.h"
#include "tests/kernels/gpu_test.h"

namespace kvferry::kernels {
namespace {

class LostContextTest : public GpuTest {
 protected:
  LostContextTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  // In a process of its own. Exits with 0 when every promise was kept.
  [[noreturn]] void LoseContext() {
    if (!CheckContext(0).ok()) Exit("lost from the start");
    const auto nowhere = reinterpret_cast<std::byte*>(std::uintptr_t{4096});
    const absl::Status launched =
        LaunchPageTable({.layers = reinterpret_cast<const PageLayer*>(nowhere),
                         .layer_count = 1,
                         .rows = reinterpret_cast<const std::uint32_t*>(nowhere),
                         .row_count = 1,
                         .table = reinterpret_cast<const std::byte**>(nowhere),
                         .table_stride = 1},
                        stream());
    if (!launched.ok()) Exit("the launch failed");
    if (stream().Synchronize().ok()) Exit("the kernel found something");
    for (int look = 0; look < 2; ++look) {
      const absl::Status lost = CheckContext(0);
      if (!absl::IsUnavailable(lost)) Exit("not lost");
      std::cerr << lost.message() << '\n';
    }
    Exit("");
  }

 private:
  [[noreturn]] static void Exit(const char* why) {
    std::cerr << why << std::endl;
    std::_Exit(*why == '\0' ? 0 : 1);
  }
};

TEST_F(LostContextTest, IsFoundOutByEveryLook) {
  EXPECT_EXIT(LoseContext(), ::testing::ExitedWithCode(0), "GPU 0: .*\nGPU 0: ");
}

TEST_F(LostContextTest, ARefusedCallLosesNothing) {
  EXPECT_FALSE(LaunchPageTable({}, stream()).ok());
  EXPECT_TRUE(CheckContext(0).ok());
}

TEST(LostContext, AGpuThatIsNotThereCannotBeUsed) {
  EXPECT_TRUE(absl::IsUnavailable(CheckContext(DeviceCount() + 7)));
}

}  // namespace
}  // namespace kvferry::kernels
