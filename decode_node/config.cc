#include "decode_node/config.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "decode_node/admission.h"
#include "kvcodec/open_codec.h"
#include "rpc/config_checks.h"
#include "rpc/convert.h"

namespace kvferry::decode {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

absl::Status CompletePool(v1::DecodeConfig& config) {
  if (config.codec().empty()) config.set_codec(std::string(codec::kDefaultCodec));
  if (const auto codec = codec::OpenCodec(config.codec()); !codec.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec is \"", config.codec(), "\": ", codec.status().message()));
  } else if (codec->NeedsCodebooks()) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec is \"", config.codec(),
                     "\", which needs codebooks: make them with `kvferry calibrate codebooks` and "
                     "name it \"",
                     config.codec(), ":codebooks=FILE\""));
  }
  if (!config.has_pool_bytes()) config.set_pool_bytes(1024 * kMiB);
  if (!config.has_max_sequences()) config.set_max_sequences(64);
  KVF_RETURN_IF_ERROR(
      rpc::CheckRange("pool_bytes", config.pool_bytes(), 64 * 1024, std::uint64_t{1} << 46));
  return rpc::CheckRange("max_sequences", config.max_sequences(), 1, 4096);
}

absl::Status CompleteLanding(v1::DecodeConfig& config) {
  if (!config.has_landing_slot_bytes()) config.set_landing_slot_bytes(4 * kMiB);
  if (!config.has_landing_slots()) config.set_landing_slots(32);
  if (!config.has_credits_per_transfer()) config.set_credits_per_transfer(4);
  KVF_RETURN_IF_ERROR(
      rpc::CheckRange("landing_slot_bytes", config.landing_slot_bytes(), 4096, 1024 * kMiB));
  if (config.landing_slot_bytes() % 4096 != 0) {
    return rpc::OutOfRange("landing_slot_bytes", config.landing_slot_bytes(), "a multiple of 4096");
  }
  KVF_RETURN_IF_ERROR(rpc::CheckRange("landing_slots", config.landing_slots(), kMinCredits, 4096));
  KVF_RETURN_IF_ERROR(rpc::CheckRange("credits_per_transfer", config.credits_per_transfer(),
                                      kMinCredits, config.landing_slots()));
  if (!config.has_grant_lease()) *config.mutable_grant_lease() = rpc::ToProto(absl::Seconds(30));
  return rpc::CheckDuration("grant_lease", absl::Milliseconds(100), absl::Hours(1),
                            config.grant_lease());
}

}  // namespace

absl::Status CompleteConfig(v1::DecodeConfig& config) {
  KVF_RETURN_IF_ERROR(rpc::CompleteWorker("decode", *config.mutable_worker()));
  KVF_RETURN_IF_ERROR(rpc::CompleteModel(*config.mutable_model()));
  KVF_RETURN_IF_ERROR(rpc::CompleteTransport(*config.mutable_transport()));
  if (config.log().level().empty()) config.mutable_log()->set_level("info");
  KVF_RETURN_IF_ERROR(CompletePool(config));
  return CompleteLanding(config);
}

}  // namespace kvferry::decode
