#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "decode_node/block_receiver.h"
#include "tests/decode_node/transfer_builder.h"

namespace kvferry::decode {

inline constexpr transport::PeerHandle kPeer{5};
inline constexpr int kTokens = 4 + 3 * 64 + 64 + 10;  // 3 blocks, 74 window tokens

// One receiver of a transfer of three chunks, and what it has asked for.
class BlockReceiverFixture : public ::testing::Test {
 protected:
  absl::Status Offer(const transport::ChunkHeader& header, transport::PeerHandle from = kPeer) {
    return receiver.OnChunk(from, header, header.payload_bytes, now, out);
  }
  absl::Status Bring(const transport::ChunkHeader& header) {
    const absl::Status status = Offer(header);
    return status.ok() ? receiver.OnLanded(header.chunk_seq, absl::OkStatus(), now, out) : status;
  }
  absl::Status Tell(transport::MessageType type, transport::PeerHandle from = kPeer,
                    absl::StatusCode cause = absl::StatusCode::kOk) {
    return receiver.OnMessage(from,
                              {.type = type,
                               .transfer_id = spec.id,
                               .epoch = spec.epoch,
                               .cause = static_cast<std::uint32_t>(cause)},
                              now, out);
  }
  absl::Status Commit(std::uint32_t chunks = 3) {
    return receiver.OnMessage(kPeer, MakeCommit(spec, chunks, receiver.bytes_total()), now, out);
  }
  std::vector<ReceiverAction::Kind> Take() {
    std::vector<ReceiverAction::Kind> kinds;
    for (const ReceiverAction& action : out) kinds.push_back(action.kind);
    out.clear();
    return kinds;
  }

  const TransferSpec spec = MakeSpec(kTokens);
  MonoTime now = absl::Seconds(100);
  const ReceiverLimits limits;
  BlockReceiver receiver{spec, limits, now};
  ReceiverActions out;
};

}  // namespace kvferry::decode
