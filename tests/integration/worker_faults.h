#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model.h"
#include "tests/integration/cluster.h"
#include "tests/integration/reference.h"
#include "tests/integration/served_model.h"

namespace kvferry::testing {

// Where the workers of a fault test compute.
struct FaultDevices {
  std::string prefill = "cpu", decode = "cpu";  // model.device
  // Of the demo model with the fp16 codec: a step whose two best logits are nearer may choose
  // either.
  float logit_error = 0.05f;
};

// Router, two prefill and two decode workers on this host, transfers that take about a second, and
// streams that run while one worker dies. The demo model where it is installed, else random
// weights. Thread: one.
class WorkerFaults {
 public:
  static absl::StatusOr<std::unique_ptr<WorkerFaults>> Start(const FaultDevices& devices);

  // All streams at once; nobody dies.
  std::vector<Answer> RunStreams();
  // The same, while a worker dies (SIGKILL) that has such a transfer; it is started again when the
  // streams have ended. kDeadlineExceeded: none had.
  //   role: "prefill", "decode".
  absl::StatusOr<std::vector<Answer>> RunStreamsAndKill(
      const std::string& role, const std::function<bool(const v1::TransferState&)>& is_such);
  // Until all workers are attached and nothing of a request is left in any.
  absl::Status AwaitIdle();

  // OK: every token once and in order, as many as asked for, and the reference's as far as these
  // are sure.
  absl::Status CheckAnswers(const std::vector<Answer>& answers) const;
  // How many tokens the references decide, of all streams together.
  std::size_t comparable_tokens() const;

  Cluster& cluster() { return *cluster_; }

 private:
  WorkerFaults() = default;
  absl::Status MakeReferences(const ServedModel& served);

  FaultDevices devices_;
  std::unique_ptr<model::Model> model_;
  std::vector<std::vector<std::int32_t>> prompts_;
  std::vector<Reference> references_;
  std::unique_ptr<Cluster> cluster_;
};

}  // namespace kvferry::testing
