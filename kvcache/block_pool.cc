#include "kvcache/block_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::cache {
namespace {

std::size_t Index(PageState state) { return static_cast<std::size_t>(state); }
std::uint32_t Index(RowIdx row) { return static_cast<std::uint32_t>(row); }

const char* Name(PageState state) {
  switch (state) {
    case PageState::kFree:
      return "free";
    case PageState::kGranted:
      return "granted";
    case PageState::kFilled:
      return "filled";
    case PageState::kPublished:
      return "published";
    case PageState::kQuarantined:
      return "quarantined";
  }
  return "unknown";
}

}  // namespace

// The one table of page transitions; docs/protocol.md shows it.
bool IsLegalTransition(PageState from, PageState to) {
  switch (from) {
    case PageState::kFree:
      return to == PageState::kGranted;
    case PageState::kGranted:
      return to == PageState::kFilled || to == PageState::kQuarantined || to == PageState::kFree;
    case PageState::kFilled:
      return to == PageState::kPublished || to == PageState::kFree;
    case PageState::kPublished:
    case PageState::kQuarantined:
      return to == PageState::kFree;
  }
  return false;
}

absl::StatusOr<BlockPool> BlockPool::Create(int layers, std::uint32_t rows) {
  if (layers <= 0 || rows == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pool of ", rows, " rows in ", layers, " layers holds nothing"));
  }
  return BlockPool(layers, rows);
}

BlockPool::BlockPool(int layers, std::uint32_t rows)
    : layers_(layers), states_(static_cast<std::size_t>(rows) * layers, PageState::kFree) {
  free_rows_.reserve(rows);
  for (std::uint32_t row = rows; row > 0; --row) free_rows_.push_back(RowIdx{row - 1});
  counts_[Index(PageState::kFree)] = states_.size();
}

PageState BlockPool::state(RowIdx row, int layer) const {
  return states_[static_cast<std::size_t>(Index(row)) * layers_ + layer];
}
std::uint32_t BlockPool::rows() const {
  return static_cast<std::uint32_t>(states_.size() / layers_);
}
std::uint32_t BlockPool::free_rows() const { return static_cast<std::uint32_t>(free_rows_.size()); }
std::array<std::uint64_t, kPageStates> BlockPool::CountPages() const { return counts_; }

absl::Status BlockPool::Check(RowIdx row, int layer, PageState to) const {
  if (Index(row) >= rows() || layer < 0 || layer >= layers_) {
    return absl::InternalError(
        absl::StrCat("page (row ", Index(row), ", layer ", layer, ") is outside the pool"));
  }
  const PageState from = state(row, layer);
  if (IsLegalTransition(from, to)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("page (row ", Index(row), ", layer ", layer, "): ",
                                          Name(from), " -> ", Name(to), " is not a transition"));
}

void BlockPool::Set(RowIdx row, int layer, PageState to) {
  PageState& page = states_[static_cast<std::size_t>(Index(row)) * layers_ + layer];
  --counts_[Index(page)];
  ++counts_[Index(to)];
  page = to;
}

absl::Status BlockPool::MoveRow(RowIdx row, PageState to) {
  for (int layer = 0; layer < layers_; ++layer) KVF_RETURN_IF_ERROR(Check(row, layer, to));
  for (int layer = 0; layer < layers_; ++layer) Set(row, layer, to);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<RowIdx>> BlockPool::Reserve(std::uint32_t count) {
  if (count > free_rows_.size()) {
    return absl::ResourceExhaustedError(absl::StrCat(count, " rows of 64 tokens wanted, ",
                                                     free_rows_.size(), " of ", rows(), " free"));
  }
  const std::vector<RowIdx> taken(free_rows_.rbegin(), free_rows_.rbegin() + count);
  for (const RowIdx row : taken) KVF_RETURN_IF_ERROR(MoveRow(row, PageState::kGranted));
  free_rows_.resize(free_rows_.size() - count);
  return taken;
}

absl::Status BlockPool::Fill(RowIdx row, int layer) {
  KVF_RETURN_IF_ERROR(Check(row, layer, PageState::kFilled));
  Set(row, layer, PageState::kFilled);
  return absl::OkStatus();
}

absl::Status BlockPool::Publish(RowIdx row) { return MoveRow(row, PageState::kPublished); }

absl::Status BlockPool::Free(RowIdx row) {
  for (int layer = 0; layer < layers_; ++layer) {
    KVF_RETURN_IF_ERROR(Check(row, layer, PageState::kFree));
    if (state(row, layer) == PageState::kQuarantined) {
      return absl::InternalError(
          absl::StrCat("row ", Index(row), " is in quarantine: only ReleaseQuarantine frees it"));
    }
  }
  KVF_RETURN_IF_ERROR(MoveRow(row, PageState::kFree));
  free_rows_.push_back(row);
  return absl::OkStatus();
}

absl::Status BlockPool::Quarantine(RowIdx row) {
  bool any_quarantined = false;
  for (int layer = 0; layer < layers_; ++layer)
    KVF_RETURN_IF_ERROR(Check(row, layer, AbortedState(row, layer)));
  for (int layer = 0; layer < layers_; ++layer) {
    const PageState to = AbortedState(row, layer);
    any_quarantined = any_quarantined || to == PageState::kQuarantined;
    Set(row, layer, to);
  }
  if (!any_quarantined) free_rows_.push_back(row);
  return absl::OkStatus();
}

PageState BlockPool::AbortedState(RowIdx row, int layer) const {
  const bool in_range = Index(row) < rows();
  return in_range && state(row, layer) == PageState::kFilled ? PageState::kFree
                                                             : PageState::kQuarantined;
}

absl::Status BlockPool::ReleaseQuarantine(RowIdx row) {
  bool any_quarantined = false;
  for (int layer = 0; layer < layers_; ++layer) {
    if (Index(row) < rows() && state(row, layer) == PageState::kFree) continue;
    KVF_RETURN_IF_ERROR(Check(row, layer, PageState::kFree));
    if (state(row, layer) != PageState::kQuarantined) {
      return absl::InternalError(absl::StrCat("row ", Index(row), " is not in quarantine"));
    }
    any_quarantined = true;
  }
  if (!any_quarantined)
    return absl::InternalError(absl::StrCat("row ", Index(row), " is not in quarantine"));
  for (int layer = 0; layer < layers_; ++layer) {
    if (state(row, layer) == PageState::kQuarantined) Set(row, layer, PageState::kFree);
  }
  free_rows_.push_back(row);
  return absl::OkStatus();
}

absl::Status BlockPool::CheckConservation() const {
  std::array<std::uint64_t, kPageStates> counts{};
  for (const PageState page : states_) ++counts[Index(page)];
  if (counts != counts_)
    return absl::InternalError("the counts of page states do not match the pages");
  std::vector<bool> listed(rows(), false);
  for (const RowIdx row : free_rows_) {
    if (listed[Index(row)])
      return absl::InternalError(absl::StrCat("row ", Index(row), " is twice in the free list"));
    listed[Index(row)] = true;
  }
  for (std::uint32_t row = 0; row < rows(); ++row) {
    bool all_free = true;
    for (int layer = 0; layer < layers_; ++layer)
      all_free = all_free && state(RowIdx{row}, layer) == PageState::kFree;
    if (all_free != listed[row]) {
      return absl::InternalError(absl::StrCat(
          "row ", row, all_free ? " is free but not listed" : " is listed but in use"));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvferry::cache
