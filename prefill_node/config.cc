#include "prefill_node/config.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "rpc/config_checks.h"

namespace kvferry::prefill {
absl::Status CompleteConfig(v1::PrefillConfig& config) {
  KVF_RETURN_IF_ERROR(rpc::CompleteWorker("prefill", *config.mutable_worker()));
  KVF_RETURN_IF_ERROR(rpc::CompleteModel(*config.mutable_model()));
  KVF_RETURN_IF_ERROR(rpc::CompleteTransport(*config.mutable_transport()));
  if (config.log().level().empty()) config.mutable_log()->set_level("info");
  if (!config.has_chunk_tokens()) config.set_chunk_tokens(512);
  if (!config.has_send_slot_bytes()) config.set_send_slot_bytes(std::uint64_t{4} << 20);
  if (!config.has_send_slots()) config.set_send_slots(16);
  if (!config.has_max_queued_requests()) config.set_max_queued_requests(256);
  KVF_RETURN_IF_ERROR(rpc::CheckRange("chunk_tokens", config.chunk_tokens(), 64, 65536));
  if (config.chunk_tokens() % 64 != 0) {
    return rpc::OutOfRange("chunk_tokens", config.chunk_tokens(), "a multiple of 64");
  }
  KVF_RETURN_IF_ERROR(
      rpc::CheckRange("send_slot_bytes", config.send_slot_bytes(), 4096, std::uint64_t{1} << 30));
  if (config.send_slot_bytes() % 4096 != 0) {
    return rpc::OutOfRange("send_slot_bytes", config.send_slot_bytes(), "a multiple of 4096");
  }
  KVF_RETURN_IF_ERROR(rpc::CheckRange("send_slots", config.send_slots(), 2, 4096));
  return rpc::CheckRange("max_queued_requests", config.max_queued_requests(), 1, 1 << 20);
}

}  // namespace kvferry::prefill
