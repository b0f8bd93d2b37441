#include "tests/integration/worker_faults.h"

#include <signal.h>

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "kvcodec/plan.h"

namespace kvferry::testing {
namespace {

constexpr int kStreams = 4;
constexpr int kTokens = 96;
// Its logits have a deviation of 1, and attention over random K and V averages rounding out.
constexpr float kRandomLogitError = 0.01f;
constexpr absl::Duration kTransferTime = absl::Seconds(1);  // of one prompt
constexpr absl::Duration kStateLimit = absl::Seconds(60);
constexpr absl::Duration kAttachLimit = absl::Seconds(60);
constexpr absl::Duration kFreeLimit = absl::Seconds(10);

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerFaults>> WorkerFaults::Start(const FaultDevices& devices) {
  std::unique_ptr<WorkerFaults> faults(new WorkerFaults);
  faults->devices_ = devices;
  const ServedModel served = ChooseServedModel();
  if (served.random_weights) faults->devices_.logit_error = kRandomLogitError;
  KVF_RETURN_IF_ERROR(faults->MakeReferences(served));
  const model::ModelConfig& shape = faults->model_->config();
  std::size_t longest = 0;
  for (const auto& prompt : faults->prompts_) longest = std::max(longest, prompt.size());
  const std::size_t bytes = codec::Raw16HandoffBytes(
      static_cast<int>(longest),
      {.layers = shape.layers, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim});
  ClusterOptions options{.prefill_workers = 2,
                         .decode_workers = 2,
                         .random_weights = served.random_weights ? served.path : ""};
  options.set_prefill = {
      absl::StrCat("model.device=", devices.prefill),
      absl::StrCat("transport.rate_limit_bytes_per_s=",
                   static_cast<std::uint64_t>(static_cast<double>(bytes) /
                                              absl::ToDoubleSeconds(kTransferTime)))};
  options.set_decode = {absl::StrCat("model.device=", devices.decode), "max_sequences=16",
                        "pool_bytes=268435456"};
  if (devices.prefill != "cpu" && devices.decode != "cpu") {
    for (auto* settings : {&options.set_prefill, &options.set_decode}) {
      settings->push_back("transport.memory=cuda");
      settings->push_back("transport.required=cuda_ipc");
    }
  }
  KVF_ASSIGN_OR_RETURN(faults->cluster_, Cluster::Start(options));
  return faults;
}

// Exact attention on CPUs, in this process.
absl::Status WorkerFaults::MakeReferences(const ServedModel& served) {
  KVF_ASSIGN_OR_RETURN(
      model_, model::Model::Load({.path = served.path, .random_weights = served.random_weights}));
  KVF_ASSIGN_OR_RETURN(prompts_, LongPrompts(served, model_->config().vocabulary, kStreams));
  for (const auto& prompt : prompts_) {
    KVF_ASSIGN_OR_RETURN(references_.emplace_back(), GreedyReference(*model_, prompt, kTokens));
  }
  return absl::OkStatus();
}

std::vector<Answer> WorkerFaults::RunStreams() {
  std::vector<std::future<Answer>> running;
  for (const auto& prompt : prompts_) {
    v1::GenerateRequest request = GreedyRequest("", kTokens);
    request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    running.push_back(std::async(std::launch::async, [this, request = std::move(request)] {
      return cluster_->Generate(request);
    }));
  }
  std::vector<Answer> answers;
  for (auto& answer : running) answers.push_back(answer.get());
  return answers;
}

absl::StatusOr<std::vector<Answer>> WorkerFaults::RunStreamsAndKill(
    const std::string& role, const std::function<bool(const v1::TransferState&)>& is_such) {
  auto streams = std::async(std::launch::async, [this] { return RunStreams(); });
  const absl::StatusOr<std::string> victim = cluster_->AwaitTransfer(role, is_such, kStateLimit);
  if (victim.ok()) cluster_->Signal(*victim, SIGKILL);
  std::vector<Answer> answers = streams.get();
  KVF_RETURN_IF_ERROR(victim.status());
  KVF_RETURN_IF_ERROR(cluster_->Restart(*victim));
  return answers;
}

absl::Status WorkerFaults::AwaitIdle() {
  KVF_RETURN_IF_ERROR(cluster_->AwaitRouter(
      kAttachLimit, [](const v1::GetStateResponse& state) { return state.workers_size() == 4; }));
  return cluster_->AwaitAllFree(kFreeLimit);
}

absl::Status WorkerFaults::CheckAnswers(const std::vector<Answer>& answers) const {
  for (std::size_t stream = 0; stream < answers.size(); ++stream) {
    const Answer& answer = answers[stream];
    const auto fail = [&](const absl::AlphaNum& what) {
      return absl::InternalError(
          absl::StrCat("stream ", stream, ", attempts ", answer.finished.attempts(), ": ", what));
    };
    if (!answer.status.ok()) return fail(answer.status.ToString());
    if (!answer.contiguous) return fail("a repeated or missing token");
    if (answer.ids.size() != kTokens) return fail(absl::StrCat(answer.ids.size(), " tokens"));
    const Reference& reference = references_[stream];
    const std::size_t sure = ComparableTokens(reference, devices_.logit_error);
    const auto differs =
        std::mismatch(answer.ids.begin(), answer.ids.begin() + sure, reference.ids.begin());
    if (differs.first == answer.ids.begin() + sure) continue;
    const auto at = differs.first - answer.ids.begin();
    return fail(absl::StrCat("token ", at, " is ", *differs.first, ", not ", *differs.second,
                             ", which leads by ", reference.margins[at]));
  }
  return absl::OkStatus();
}

std::size_t WorkerFaults::comparable_tokens() const {
  std::size_t tokens = 0;
  for (const Reference& reference : references_) {
    tokens += ComparableTokens(reference, devices_.logit_error);
  }
  return tokens;
}

}  // namespace kvferry::testing
