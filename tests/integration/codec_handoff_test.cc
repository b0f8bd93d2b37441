// Codecs that no other test takes through three processes, on CPUs.
#include "tests/integration/codec_handoff_suite.h"

namespace kvferry::testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Cpu, CodecHandoffTest,
                         ::testing::ValuesIn(HandoffCases(
                             [] { return HandoffDevices(); },
                             {"fp16", "bf16", "anf4", "kivi-2", "cq-4c8b", "cq-8c10b"}, "")),
                         HandoffCaseName);

}  // namespace
}  // namespace kvferry::testing
