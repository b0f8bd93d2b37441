#include "kernels/attention_plan.h"

#include <algorithm>
#include <cmath>

namespace kvferry::kernels {
namespace {

constexpr int kWaves = 3;  // pieces per slot where there are more heads than slots

// Thread blocks of equal work do not end together. So a piece that is this long, in rounds of its
// warps, leaves a last part of this many rounds to who is done early. Of shorter ones, what a
// tail's own start and end take is more than what it saves.
constexpr int kLongPiece = 20, kTail = 2;

int RowGroups(const AttentionShape& shape) { return (shape.query_rows + kColumns - 1) / kColumns; }
int Tiles(const AttentionLength& length) {
  return (length.raw_tokens + kTileTokens - 1) / kTileTokens;
}
double Cost(const AttentionLength& length, const AttentionShape& shape) {
  return length.blocks + static_cast<double>(shape.tile_cost) * Tiles(length);
}
// The most pieces of one head that are not empty.
int MostPieces(const AttentionLength& length) { return std::max(1, length.blocks + Tiles(length)); }
// Pieces of one head when none is longer than `most`; none of them is empty. Or those of a cluster.
int Pieces(const AttentionLength& length, const AttentionShape& shape, double most) {
  if (shape.clustered) return kClusterBlocks;
  const int wanted = static_cast<int>(std::ceil(Cost(length, shape) / most));
  return std::clamp(wanted, 1, MostPieces(length));
}

// The least cost of the longest piece with which all pieces fit into `slots`; every warp of a
// thread block has something to do.
double LongestPiece(std::span<const AttentionLength> lengths, const AttentionShape& shape,
                    std::int64_t slots) {
  const std::int64_t heads = std::int64_t{shape.kv_heads} * RowGroups(shape);
  const auto fits = [&](std::int64_t most) {
    std::int64_t pieces = 0;
    for (const AttentionLength& length : lengths) {
      pieces += heads * Pieces(length, shape, static_cast<double>(most));
    }
    return pieces <= slots;
  };
  std::int64_t low = shape.warps - 1, high = shape.warps;
  while (!fits(high)) low = high, high *= 2;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return static_cast<double>(high);
}

// Cuts one sequence for one KV head and group of rows into `count` pieces, each a run of its blocks
// and one of its tiles, and as many tails of `tail` blocks, or none of 0. Tiles are spread, since a
// warp reads one while its first blocks are on their way.
void AppendPieces(const AttentionLength& length, const AttentionShape& shape, int count, int tail,
                  AttentionPiece piece, AttentionPlan& plan) {
  const int tiles = Tiles(length), blocks = length.blocks - tail * count;
  const int full = std::min(count, MostPieces(length));  // those after them are empty
  const double share = (Cost(length, shape) - tail * count) / full;
  int without_tiles = full - std::min(full, tiles);  // of the pieces to come: each needs a block
  piece.first_partial = static_cast<int>(plan.pieces.size());
  piece.partials = tail > 0 ? 2 * count : count;
  int block = 0, tile = 0;
  for (int i = 1; i <= count; ++i) {
    const int tile_end = static_cast<int>(std::int64_t{tiles} * std::min(i, full) / full);
    const int least = tile_end == tile ? 1 : 0;
    without_tiles -= least;
    const double wanted = share * i - static_cast<double>(shape.tile_cost) * tile_end;
    const int block_end = i >= full ? blocks
                                    : std::clamp(static_cast<int>(std::lround(wanted)),
                                                 block + least, blocks - without_tiles);
    piece.page_begin = length.page_begin + block;
    piece.blocks = block_end - block;
    piece.tile_begin = tile;
    piece.tiles = tile_end - tile;
    piece.partial = static_cast<int>(plan.pieces.size());
    plan.pieces.push_back(piece);
    block = block_end, tile = tile_end;
  }
  piece.blocks = tail;
  piece.tile_begin = tile;
  piece.tiles = 0;
  for (; block < length.blocks; block += tail) {
    piece.page_begin = length.page_begin + block;
    piece.partial = static_cast<int>(plan.pieces.size());
    plan.pieces.push_back(piece);
  }
}

// Of the pieces that share rows the last one merges. The device starts thread blocks in the order
// of the plan: so none ever waits for one that has not been started.
void ChooseMerging(AttentionPlan& plan) {
  std::vector<bool> chosen(plan.pieces.size());  // by first_partial
  for (auto piece = plan.pieces.rbegin(); piece != plan.pieces.rend(); ++piece) {
    if (piece->partials == 1 || chosen[piece->first_partial]) continue;
    chosen[piece->first_partial] = true;
    piece->merges = 1;
  }
}

}  // namespace

int Heads(int sequences, const AttentionShape& shape) {
  return sequences * shape.kv_heads * RowGroups(shape);
}

AttentionPlan PlanAttention(std::span<const AttentionLength> lengths, const AttentionShape& shape) {
  AttentionPlan plan;
  if (lengths.empty()) return plan;
  const int groups = RowGroups(shape);
  const std::int64_t heads = std::int64_t{shape.kv_heads} * groups * std::ssize(lengths);
  const bool one_wave = heads <= shape.slots;
  const std::int64_t slots =
      one_wave ? shape.slots : heads + std::int64_t{kWaves - 1} * shape.slots;
  const double most = LongestPiece(lengths, shape, slots);
  const int long_piece = one_wave && shape.has_tails ? kLongPiece * shape.warps : 0;
  for (std::size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    const AttentionLength& length = lengths[sequence];
    const int count = Pieces(length, shape, most);
    const bool is_long = long_piece > 0 && length.blocks >= count * long_piece;
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (int g = 0; g < groups; ++g) {
        AttentionPiece piece{};
        piece.sequence = static_cast<int>(sequence);
        piece.kv_head = head;
        piece.row_begin = g * kColumns;
        piece.rows = std::min(kColumns, shape.query_rows - g * kColumns);
        AppendPieces(length, shape, count, is_long ? kTail * shape.warps : 0, piece, plan);
        plan.has_tails |= is_long;
      }
    }
  }
  const auto cost = [&](const AttentionPiece& p) { return p.blocks + shape.tile_cost * p.tiles; };
  if (!one_wave || plan.has_tails) {
    std::stable_sort(plan.pieces.begin(), plan.pieces.end(),
                     [&](const auto& a, const auto& b) { return cost(a) > cost(b); });
  }
  if (!shape.clustered) ChooseMerging(plan);
  return plan;
}

int MaxPieces(int sequences, const AttentionShape& shape) {
  const int heads = Heads(sequences, shape);
  if (shape.clustered) return std::min(heads * kClusterBlocks, shape.slots);
  if (heads <= shape.slots) return shape.has_tails ? 2 * shape.slots : shape.slots;
  return heads + (kWaves - 1) * shape.slots;
}

}  // namespace kvferry::kernels
