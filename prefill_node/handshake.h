#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvferry/v1/types.pb.h"
#include "prefill_node/data_plane.h"
#include "rpc/credentials.h"

namespace kvferry::prefill {

// A decode worker as a grant or the router's Peers names it.
struct DecodeTarget {
  std::string name;
  std::string control_address;
  Incarnation incarnation{};
};

// Introduces this worker to decode workers (Transfer.Handshake), once per pair and again after the
// pair was lost: compares fingerprints, exchanges addresses and a fresh pair key, connects.
// Thread: any.
class Handshaker {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // data_plane and credentials outlive it.
  Handshaker(std::string name, v1::Fingerprint fingerprint, const rpc::Credentials& credentials,
             DataPlane& data_plane, absl::Duration limit = absl::Seconds(3));
  ~Handshaker();

  // Calls `done` once: OK when the pair is connected, at once if it is already; callers that wait
  // for the same worker share one handshake. kFailedPrecondition: another fingerprint or wire
  // version, with the difference. kUnavailable: not reached, or another process answers there.
  void Ensure(const DecodeTarget& target, Done done);
  // Ends what runs with kCancelled and waits for it. Idempotent.
  void Stop();

 private:
  struct Call;

  void Start(const std::shared_ptr<Call>& call);
  absl::Status Adopt(const Call& call);
  void Finish(const std::shared_ptr<Call>& call, const absl::Status& status);

  const std::string name_;
  const v1::Fingerprint fingerprint_;
  const rpc::Credentials& credentials_;
  DataPlane& data_plane_;
  const absl::Duration limit_;

  absl::Mutex mutex_;
  // By the decode worker's incarnation. shared_ptr: gRPC's callback holds the call, too.
  absl::flat_hash_map<std::uint64_t, std::shared_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvferry::prefill
