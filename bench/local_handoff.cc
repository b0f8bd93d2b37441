#include "bench/local_handoff.h"

#include "common/status_macros.h"
#include "prefill_node/chunk_encoder.h"
#include "prefill_node/chunk_layout.h"

namespace kvferry::bench {
namespace {

transport::ChunkHeader HeaderOf(const prefill::ChunkPlan& chunk, std::uint32_t check) {
  transport::ChunkHeader header;
  header.layer_begin = static_cast<std::uint16_t>(chunk.layer_begin);
  header.layer_count = static_cast<std::uint16_t>(chunk.layer_count);
  header.token_begin = static_cast<std::uint32_t>(chunk.token_begin);
  header.token_count = static_cast<std::uint32_t>(chunk.token_count);
  header.kind = chunk.kind;
  header.payload_bytes = static_cast<std::uint32_t>(chunk.bytes);
  header.payload_check = check;
  return header;
}

}  // namespace

absl::StatusOr<std::size_t> HandOff(std::span<const codec::KvView> layers,
                                    const codec::Quantizer& quantizer, decode::CacheStore& store,
                                    std::span<std::byte> slot,
                                    std::span<const std::unique_ptr<decode::StoredSequence>> to) {
  const int tokens = layers.front().tokens;
  KVF_ASSIGN_OR_RETURN(
      const std::vector<prefill::ChunkPlan> chunks,
      prefill::LayoutChunks({.plan = codec::PlanBlocks(tokens, store.codec().window),
                             .geometry = store.geometry(),
                             .layers = store.specs(),
                             .step_tokens = tokens,
                             .slot_bytes = slot.size()}));
  std::size_t bytes = 0;
  for (const prefill::ChunkPlan& chunk : chunks) {
    const std::span<std::byte> payload = slot.first(chunk.bytes);
    KVF_ASSIGN_OR_RETURN(const std::uint32_t check,
                         prefill::EncodeChunk(chunk, store.specs(), layers, quantizer, payload));
    const transport::ChunkHeader header = HeaderOf(chunk, check);
    for (const auto& sequence : to) {
      KVF_RETURN_IF_ERROR(sequence->CopyChunk(header, payload));
      KVF_RETURN_IF_ERROR(sequence->FillChunk(header));
    }
    bytes += payload.size();
  }
  for (const auto& sequence : to) KVF_RETURN_IF_ERROR(sequence->Publish());
  return bytes;
}

}  // namespace kvferry::bench
