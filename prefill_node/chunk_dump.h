#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"

namespace kvferry::prefill {

// Writes every chunk, header and payload, into a folder for `kvferry inspect`. The files hold the
// cache of real prompts, so a worker does it only when its config says so, and says it loudly.
// Thread: any.
class ChunkDump {
 public:
  // An empty folder name writes nothing. kInvalidArgument: the folder cannot be made.
  static absl::StatusOr<ChunkDump> Create(const std::string& folder);

  // FOLDER/chunk-TRANSFER-SEQ.bin. What cannot be written is logged: a full disk stops no request.
  void Write(const TransferId& id, std::uint32_t chunk_seq, std::span<const std::byte> header,
             std::span<const std::byte> payload) const;

 private:
  explicit ChunkDump(std::string folder) : folder_(std::move(folder)) {}
  std::string folder_;
};

}  // namespace kvferry::prefill
