#include "gmock/gmock.h"
#include "tests/kvcodec/golden_cases.h"

// Blocks against those of tests/golden/codec/make_golden.py, an independent writer in numpy.
namespace kvferry::codec {
namespace {

class GoldenTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, GoldenTest, testing::ValuesIn(BackendNames()), BackendTestName);

TEST_P(GoldenTest, BlocksAreThoseOfTheIndependentWriter) {
  const std::unique_ptr<Backend> backend = MakeNamedBackend(GetParam());
  const std::vector<std::byte> golden = LoadGoldenBlocks();
  const std::vector<GoldenCase> cases = LoadGoldenCases();
  ASSERT_GT(cases.size(), 100u) << "run from the repository root";
  for (const GoldenCase& c : cases) {
    ASSERT_EQ(BlockBytes(c.spec), c.bytes) << c.line;
    ASSERT_LE(c.offset + c.bytes, golden.size()) << c.line;
    const KvSample kv = MakeGoldenInput(c);
    GuardedPage page(c.bytes);
    const absl::Status status = backend->Quantize(kv.view, c.spec, c.origin, page.span());
    ASSERT_TRUE(status.ok()) << c.line << ": " << status;
    page.Check();
    const std::byte* want = golden.data() + c.offset;
    for (std::size_t i = 0; i < c.bytes; ++i) {
      ASSERT_EQ(static_cast<int>(page.data()[i]), static_cast<int>(want[i]))
          << c.line << ", byte " << i;
    }
  }
}

}  // namespace
}  // namespace kvferry::codec
