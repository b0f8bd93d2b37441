#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::cache {

// docs/protocol.md has the table: free -> granted -> filled -> published -> free; on abort filled
// -> free and granted -> quarantined -> free. Nothing else.
enum class PageState : std::uint8_t { kFree, kGranted, kFilled, kPublished, kQuarantined };
inline constexpr int kPageStates = 5;
bool IsLegalTransition(PageState from, PageState to);

// A row is one 64-token range of one sequence: one page in each layer, all at this index. Rows are
// what is reserved, since every sequence needs the same number of pages in every layer; states are
// kept per page.
enum class RowIdx : std::uint32_t {};

// Who owns which page of a pool and in which state it is. Bookkeeping only: the bytes belong to the
// node. Illegal transitions are our own bug and return kInternal with page and both states; nothing
// changes then. Thread: none; the owner serializes.
class BlockPool {
 public:
  // kInvalidArgument: no rows or no layers.
  static absl::StatusOr<BlockPool> Create(int layers, std::uint32_t rows);

  // Takes `count` free rows, all pages granted. kResourceExhausted with what is free; nothing is
  // taken then.
  absl::StatusOr<std::vector<RowIdx>> Reserve(std::uint32_t count);

  absl::Status Fill(RowIdx row, int layer);  // granted -> filled
  absl::Status Publish(RowIdx row);          // all layers filled -> published
  // Published or filled, or granted that no peer was told of -> free. Never out of quarantine.
  absl::Status Free(RowIdx row);
  absl::Status Quarantine(RowIdx row);  // granted pages -> quarantined, filled ones -> free
  absl::Status ReleaseQuarantine(
      RowIdx row);  // quarantined -> free: no write can be in flight any more

  PageState state(RowIdx row, int layer) const;
  std::uint32_t rows() const;
  std::uint32_t free_rows() const;
  // Pages per state; the sum is always rows * layers.
  std::array<std::uint64_t, kPageStates> CountPages() const;
  // Recounts everything from the states. kInternal names the first page for which the books are
  // wrong.
  absl::Status CheckConservation() const;

 private:
  BlockPool(int layers, std::uint32_t rows);
  absl::Status Check(RowIdx row, int layer, PageState to) const;
  void Set(RowIdx row, int layer, PageState to);
  absl::Status MoveRow(RowIdx row, PageState to);  // all layers or none
  PageState AbortedState(RowIdx row, int layer) const;

  int layers_;
  std::vector<PageState> states_;  // [row][layer]
  std::vector<RowIdx> free_rows_;  // a row is here when all its pages are free
  std::array<std::uint64_t, kPageStates> counts_{};
};

}  // namespace kvferry::cache
