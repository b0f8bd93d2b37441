#include "prefill_node/chunk_dump.h"

#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"

namespace kvferry::prefill {

absl::StatusOr<ChunkDump> ChunkDump::Create(const std::string& folder) {
  if (folder.empty()) return ChunkDump(folder);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("dump_folder: cannot make '", folder, "': ", error.message()));
  }
  Log(LogLevel::kWarning, "dumping_chunks",
      {{"folder", folder},
       {"why", "dump_folder is set: the cache of every prompt is written there"}});
  return ChunkDump(folder);
}

void ChunkDump::Write(const TransferId& id, std::uint32_t chunk_seq,
                      std::span<const std::byte> header, std::span<const std::byte> payload) const {
  if (folder_.empty()) return;
  const std::string path =
      absl::StrFormat("%s/chunk-%s-%06d.bin", folder_, id.ToHex().substr(0, 8), chunk_seq);
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(header.data()),
             static_cast<std::streamsize>(header.size()));
  file.write(reinterpret_cast<const char*>(payload.data()),
             static_cast<std::streamsize>(payload.size()));
  file.close();
  if (!file.good()) Log(LogLevel::kError, "dump_failed", {{"file", path}});
}

}  // namespace kvferry::prefill
