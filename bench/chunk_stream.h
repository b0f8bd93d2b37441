#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "transport/ucx/ucx_transport.h"

// Chunks from one process to another through transport/ucx, as prefill and decode exchange them:
// with a sealed header, a checksum that the sender computes and the receiver verifies, and an
// acknowledgement for each.
namespace kvferry::bench {

struct ChunkStreamOptions {
  transport::UcxOptions ucx = {};
  transport::MemoryKind memory = transport::MemoryKind::kHost;
  std::size_t chunk_bytes = 0;
  int window = 0;  // chunks in flight, and slots on each side
  // The CRC32C of a chunk in its slot; what else is done with a chunk is done in there.
  std::function<absl::StatusOr<std::uint32_t>(std::span<const std::byte>)> check;
  // Told of the slots before there is a chunk in them; what it returns dies before they do. Empty:
  // nothing is done with them.
  std::function<absl::StatusOr<std::shared_ptr<void>>(std::span<std::byte>)> pin = {};
  // Threads on which the receiver checks, as the adopters of a decode worker on a GPU; 0: the
  // progress thread.
  int check_threads = 0;
};

// The receiving process: verifies and acknowledges until the sender's end of the socket `fd` is
// closed. Returns its exit code.
int ReceiveChunks(int fd, ChunkStreamOptions options);

// Sends to a receiver process, over whose socket the addresses pass. Thread: one.
class ChunkSender {
 public:
  static absl::StatusOr<std::unique_ptr<ChunkSender>> Create(int fd, ChunkStreamOptions options);
  virtual ~ChunkSender() = default;

  // The slots, in the memory that the options name.
  virtual std::span<std::byte> memory() const = 0;
  // The path's label.
  virtual const std::string& path() const = 0;
  // GB/s from the first checksum to the last acknowledgement.
  virtual absl::StatusOr<double> Round(int chunks) = 0;
};

// The addresses of two processes pass over a socket, a length first. False, empty: it is closed.
bool WriteAddress(int fd, const std::string& address);
std::string ReadAddress(int fd);

}  // namespace kvferry::bench
