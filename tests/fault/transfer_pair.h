#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "decode_node/cache_store.h"
#include "decode_node/data_plane.h"
#include "decode_node/host_cache_memory.h"
#include "kvcodec/backend.h"
#include "prefill_node/chunk_layout.h"
#include "prefill_node/data_plane.h"
#include "tests/fakes/device_path_transport.h"
#include "tests/fakes/kv_values.h"
#include "transport/loopback/loopback_transport.h"

namespace kvferry::fault {

struct PairOptions {
  std::string codec = "kivi-4-g64";
  codec::CacheGeometry geometry{.layers = 4, .kv_heads = 2, .head_dim = 64};
  std::uint32_t send_slots = 6;
  std::uint32_t landing_slots = 8;
  std::size_t slot_bytes = 128 << 10;
  // Losses are found quickly, and what ends a transfer or a connection comes after so long that a
  // thread that gets no CPU for seconds does not bring it about. 13 copies of a chunk.
  absl::Duration ack_deadline = absl::Milliseconds(30);
  int max_resends = 12;
  absl::Duration progress_limit = absl::Seconds(20);
  absl::Duration lease = absl::Seconds(20);
  absl::Duration silence_limit = absl::Seconds(15);
  bool sender_on_device = false;  // has a device path too
  bool receiver_on_device = false;
  int adopter_threads = 0;
};

// What each side says of one transfer. Thread: any.
class Outcome final : public decode::RunListener {
 public:
  void OnAdopted(decode::AdoptedSequence adopted) override;
  void OnFailed(const absl::Status& why) override;
  void OnResult(const prefill::TransferResult& result);

  // kDeadlineExceeded: nothing was said in time.
  absl::Status WaitSender();
  absl::Status WaitReceiver();
  std::optional<decode::AdoptedSequence> TakeSequence();

 private:
  absl::Mutex mutex_;
  std::optional<absl::Status> sender_, receiver_;
  std::optional<decode::AdoptedSequence> sequence_;
};

// A transfer between the two data planes of a TransferPair.
struct Transfer {
  TransferId id;
  int tokens = 0;
  std::vector<prefill::ChunkPlan> chunks;
  std::shared_ptr<Outcome> outcome = std::make_shared<Outcome>();
};

// The real sending and the real receiving side in one process, over a loopback network that can be
// told to fail. Every call checks that each page of the pool is in exactly one state.
class TransferPair {
 public:
  explicit TransferPair(const PairOptions& options = {});
  ~TransferPair();

  // The handshake: both sides connect with a fresh key.
  void Connect();
  void Partition(bool cut);
  void SetFaults(const transport::LoopbackFaults& faults) { network_->SetFaults(faults); }

  // Reserve, Run and OpenTransfer, as router and engine would.
  absl::StatusOr<Transfer> Open(int tokens, int new_tokens = 8);
  absl::Status SendChunk(const Transfer& transfer, std::size_t chunk);
  // Chunks [from, to) as far as the transfer lives.
  absl::Status SendChunks(const Transfer& transfer, std::size_t from, std::size_t to);
  absl::Status Commit(const Transfer& transfer);
  void AbortSender(const Transfer& transfer);
  void ReleaseReceiver(const Transfer& transfer);

  // The adopted cache equals what the codec makes of the same values; then gives it back.
  void CheckAndFinish(const Transfer& transfer);
  // Everything has come back on both sides.
  void ExpectAllFree();
  void ExpectConservation();

  prefill::DataPlane& sender() { return *sender_; }
  decode::DataPlane& receiver() { return *receiver_; }
  // Of the sides that have a device path.
  const fakes::DevicePaths& device_paths() const { return device_paths_; }

  static constexpr std::int32_t kFirstToken = 7;

 private:
  void CheckLayer(const Transfer& transfer, const codec::SequenceKv& kv, int layer);

  const PairOptions options_;
  codec::Codec codec_;
  std::vector<codec::BlockSpec> specs_;
  std::unique_ptr<codec::Backend> backend_;
  decode::HostCacheMemory memory_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<transport::LoopbackNetwork> network_;
  fakes::DevicePaths device_paths_;
  std::unique_ptr<decode::CacheStore> store_;
  std::unique_ptr<prefill::DataPlane> sender_;
  std::unique_ptr<decode::DataPlane> receiver_;
  std::vector<fakes::LayerKv> values_;  // by layer
};

}  // namespace kvferry::fault
