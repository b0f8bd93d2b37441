#include "router/registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvferry::router {
namespace {

absl::Status CheckInfo(const WorkerInfo& info) {
  if (info.name.empty()) return absl::InvalidArgumentError("join.name: empty");
  if (static_cast<std::uint64_t>(info.incarnation) == 0)
    return absl::InvalidArgumentError("join.incarnation: 0; a random id of this run is needed");
  if (info.control_address.empty())
    return absl::InvalidArgumentError("join.control_address: empty; host:port is needed");
  if (info.codecs.empty())
    return absl::InvalidArgumentError("join.codecs: empty; at least one codec is needed");
  return absl::OkStatus();
}

}  // namespace

std::string_view KindName(WorkerKind kind) {
  return kind == WorkerKind::kPrefill ? "prefill" : "decode";
}

absl::StatusOr<Registry::Joined> Registry::Join(WorkerInfo info, MonoTime now) {
  if (absl::Status status = CheckInfo(info); !status.ok()) return status;
  Joined joined;
  bool drain_requested = false;
  for (auto it = workers_.begin(); it != workers_.end();) {
    const bool same_run = it->second.info.incarnation == info.incarnation;
    if (!same_run && it->second.info.name != info.name) {
      ++it;
      continue;
    }
    drain_requested = drain_requested || (same_run && it->second.drain_requested);
    joined.replaced.push_back(std::move(it->second));
    it = workers_.erase(it);
  }
  std::set<std::string>& codecs = info.kind == WorkerKind::kDecode ? known_codecs_ : made_codecs_;
  codecs.insert(info.codecs.begin(), info.codecs.end());
  joined.attachment = Attachment{next_attachment_++};
  Worker& worker = workers_[joined.attachment];
  worker.info = std::move(info);
  worker.attachment = joined.attachment;
  worker.drain_requested = drain_requested;
  worker.last_report = now;
  return joined;
}

Registry::ReportResult Registry::Report(Attachment attachment, const WorkerLoad& load,
                                        MonoTime now) {
  const auto found = workers_.find(attachment);
  if (found == workers_.end()) return ReportResult::kUnknown;
  Worker& worker = found->second;
  worker.load = load;
  worker.reported = true;
  worker.last_report = now;
  if (load.free_pages > worker.refused_free_pages) worker.refused_until = -absl::InfiniteDuration();
  const bool was_stalled = worker.stalled;
  worker.stalled = load.engine_stall >= limits_.stall;
  return worker.stalled && !was_stalled ? ReportResult::kStalled : ReportResult::kOk;
}

std::vector<Worker> Registry::Leave(Attachment attachment) {
  std::vector<Worker> left;
  if (auto node = workers_.extract(attachment)) left.push_back(std::move(node.mapped()));
  return left;
}

std::vector<Worker> Registry::Expire(MonoTime now) {
  const absl::Duration pause = now - last_check_ - limits_.check_interval;
  if (last_check_ > -absl::InfiniteDuration() && pause > 2 * limits_.check_interval) {
    for (auto& [attachment, worker] : workers_)
      worker.last_report = std::min(now, worker.last_report + pause);
  }
  last_check_ = now;
  std::vector<Worker> lost;
  for (auto it = workers_.begin(); it != workers_.end();) {
    if (now - it->second.last_report < limits_.silence) {
      ++it;
      continue;
    }
    lost.push_back(std::move(it->second));
    it = workers_.erase(it);
  }
  // Nobody left to check: the next call may come any time later.
  if (workers_.empty()) last_check_ = -absl::InfiniteDuration();
  return lost;
}

absl::Status Registry::RequestDrain(const std::string& name) {
  std::vector<std::string> names;
  for (auto& [attachment, worker] : workers_) {
    names.push_back(worker.info.name);
    if (worker.info.name != name) continue;
    worker.drain_requested = true;
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("worker: \"", name, "\" is not attached; attached are: ",
                   names.empty() ? std::string("none") : absl::StrJoin(names, ", ")));
}

Worker* Registry::Find(Incarnation incarnation) {
  for (auto& [attachment, worker] : workers_) {
    if (worker.info.incarnation == incarnation) return &worker;
  }
  return nullptr;
}

}  // namespace kvferry::router
