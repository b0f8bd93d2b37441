#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"

namespace kvferry::router {

enum class WorkerKind { kPrefill, kDecode };
std::string_view KindName(WorkerKind kind);

// One stream of a worker to this router: a worker that comes back has another one.
enum class Attachment : std::uint64_t { kNone = 0 };

// What a worker says of itself when it joins.
struct WorkerInfo {
  WorkerKind kind = WorkerKind::kDecode;
  std::string name;  // unique among the attached
  Incarnation incarnation{};
  std::string control_address;
  std::vector<std::string> codecs;
  std::uint32_t max_context_tokens = 0;  // 0: not said
};

struct WorkerLoad {
  std::uint32_t queued_requests = 0;
  std::uint32_t running_requests = 0;
  std::uint32_t queued_tokens = 0;
  std::uint64_t free_pages = 0;
  std::uint64_t total_pages = 0;
  bool draining = false;
  absl::Duration engine_stall;
};

struct Worker {
  WorkerInfo info;
  Attachment attachment{};
  WorkerLoad load;
  bool reported = false;         // at least once: before that nothing is sent to it
  bool drain_requested = false;  // by an operator through this router
  bool stalled = false;          // its engine hangs; it gets nothing until the stall is over
  MonoTime last_report;

  // What this router has on it now: load that its next report may not know yet.
  std::uint32_t own_requests = 0;
  std::uint64_t own_tokens = 0;      // prefill: prompt tokens on the way
  std::uint64_t assigned_total = 0;  // ever
  // It has refused for want of room: ask again then, or when it reports more free pages.
  MonoTime refused_until = -absl::InfiniteDuration();
  std::uint64_t refused_free_pages = 0;

  bool draining() const { return load.draining || drain_requested; }
};

// The attached workers. A worker is attached from its join until its stream ends, it is silent for
// too long, or another one of its name joins. Pure: time comes in. Thread: one at a time.
class Registry {
 public:
  struct Limits {
    absl::Duration silence = absl::Milliseconds(1500);
    absl::Duration stall = absl::Seconds(20);
    // How often Expire is called. When it comes much later the router itself did not run, and
    // nobody is blamed for that time.
    absl::Duration check_interval = absl::Milliseconds(100);
  };
  explicit Registry(const Limits& limits) : limits_(limits) {}

  struct Joined {
    Attachment attachment{};
    std::vector<Worker> replaced;  // of the same name, or the same run under another stream
  };
  // kInvalidArgument names the field of the join that is missing.
  absl::StatusOr<Joined> Join(WorkerInfo info, MonoTime now);

  enum class ReportResult { kOk, kUnknown, kStalled };
  // kUnknown: not attached (any more). kStalled: the worker has just become stalled: what it runs
  // is lost.
  ReportResult Report(Attachment attachment, const WorkerLoad& load, MonoTime now);
  // The worker whose stream ended, if it was attached.
  std::vector<Worker> Leave(Attachment attachment);
  // Removes and returns the workers that were silent for too long.
  std::vector<Worker> Expire(MonoTime now);

  // kNotFound lists the attached names.
  absl::Status RequestDrain(const std::string& name);

  Worker* Find(Incarnation incarnation);  // null: not attached
  const std::map<Attachment, Worker>& workers() const { return workers_; }
  std::map<Attachment, Worker>& workers() { return workers_; }
  // Codecs that decode workers have brought since the router started: a request for one of them is
  // worth waiting for.
  const std::set<std::string>& known_codecs() const { return known_codecs_; }
  // What prefill workers have listed since then.
  const std::set<std::string>& made_codecs() const { return made_codecs_; }

  const Limits& limits() const { return limits_; }

 private:
  const Limits limits_;
  std::map<Attachment, Worker> workers_;
  std::set<std::string> known_codecs_, made_codecs_;
  std::uint64_t next_attachment_ = 1;
  MonoTime last_check_ = -absl::InfiniteDuration();
};

}  // namespace kvferry::router
