#pragma once

#include <cstdint>
#include <vector>

#include "common/crc32c.h"
#include "decode_node/block_receiver.h"
#include "kvcodec/codec.h"
#include "tests/fakes/kv_values.h"
#include "transport/wire.h"

namespace kvferry::decode {

inline constexpr codec::CacheGeometry kGeometry = {.layers = 3, .kv_heads = 2, .head_dim = 64};

inline codec::Codec TestCodec(const char* name = "kivi-4-g64") {
  return codec::FindCodec(name).value();
}

inline std::vector<std::size_t> PageSizes(const codec::Codec& codec) {
  std::vector<std::size_t> sizes;
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    sizes.push_back(
        codec::PageBytes(codec.ForLayer(layer, kGeometry.head_dim).value(), kGeometry.kv_heads));
  }
  return sizes;
}

// A grant for a prompt of `tokens` tokens.
inline TransferSpec MakeSpec(int tokens, std::uint32_t credits = 4,
                             const codec::Codec& codec = TestCodec()) {
  return {.id = TransferId{.bytes = {1, 2, 3}},
          .epoch = Epoch{2},
          .codec_hash = codec.Hash(),
          .geometry = kGeometry,
          .plan = codec::PlanBlocks(tokens, codec.window),
          .page_bytes = PageSizes(codec),
          .slot_bytes = std::size_t{1} << 20,
          .credits = credits,
          .vocabulary = 1000};
}

// A chunk of `kind` over all layers, as the grant wants it. Blocks: all of them.
inline transport::ChunkHeader MakeChunk(const TransferSpec& spec, transport::ChunkKind kind,
                                        std::uint32_t seq) {
  transport::ChunkHeader header;
  header.transfer_id = spec.id;
  header.epoch = spec.epoch;
  header.chunk_seq = seq;
  header.layer_count = spec.geometry.layers;
  header.kv_head_count = spec.geometry.kv_heads;
  header.head_dim = spec.geometry.head_dim;
  header.kind = kind;
  header.codec_hash = spec.codec_hash;
  const codec::BlockPlan& plan = spec.plan;
  if (kind == transport::ChunkKind::kBlocks) {
    header.token_begin = plan.sinks;
    header.token_count = plan.blocks * codec::kBlockTokens;
    for (const std::size_t bytes : spec.page_bytes) header.payload_bytes += bytes * plan.blocks;
    return header;
  }
  const bool sinks = kind == transport::ChunkKind::kSinks;
  header.token_begin = sinks ? 0 : plan.window_begin;
  header.token_count = sinks ? plan.sinks : plan.window_tokens();
  header.payload_bytes =
      spec.geometry.layers *
      codec::Raw16Bytes(header.token_count, spec.geometry.kv_heads, spec.geometry.head_dim);
  return header;
}

// The payload of a kSinks or kWindow chunk, with KvValue as K and V. Sets its checksum.
inline std::vector<std::byte> RawPayload(transport::ChunkHeader& header) {
  std::vector<std::byte> payload;
  payload.reserve(header.payload_bytes);
  for (int layer = 0; layer < header.layer_count; ++layer) {
    for (const bool value : {false, true}) {
      for (int head = 0; head < header.kv_head_count; ++head) {
        for (std::uint32_t token = 0; token < header.token_count; ++token) {
          for (int channel = 0; channel < header.head_dim; ++channel) {
            const std::uint16_t x = fakes::KvValue(value, header.layer_begin + layer, head,
                                                   header.token_begin + token, channel);
            payload.push_back(static_cast<std::byte>(x & 0xff));
            payload.push_back(static_cast<std::byte>(x >> 8));
          }
        }
      }
    }
  }
  header.payload_check = Crc32c(payload);
  return payload;
}

// Sinks, blocks, window: the whole hand-off in three chunks.
inline std::vector<transport::ChunkHeader> AllChunks(const TransferSpec& spec) {
  return {MakeChunk(spec, transport::ChunkKind::kSinks, 0),
          MakeChunk(spec, transport::ChunkKind::kBlocks, 1),
          MakeChunk(spec, transport::ChunkKind::kWindow, 2)};
}

inline transport::ControlMessage MakeCommit(const TransferSpec& spec, std::uint32_t chunks,
                                            std::uint64_t payload_bytes) {
  return {.type = transport::MessageType::kCommit,
          .transfer_id = spec.id,
          .epoch = spec.epoch,
          .chunks = chunks,
          .payload_bytes = payload_bytes,
          .first_token = 7};
}

}  // namespace kvferry::decode
