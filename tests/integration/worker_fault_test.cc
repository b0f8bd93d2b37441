// Workers on CPUs that die, on one host.
#include "tests/integration/worker_fault_suite.h"

namespace kvferry::testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Cpu, WorkerFaultTest,
                         ::testing::Values(FaultSetup{.name = "cpu",
                                                      .devices = [] { return FaultDevices(); },
                                                      .device_bytes_in_use = {}}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kvferry::testing
