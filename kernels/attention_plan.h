#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvferry::kernels {

inline constexpr int kTileTokens = 16;     // of one mma.sync: the unit of 16-bit tokens
inline constexpr int kColumns = 8;         // query rows that share one reading of a KV head
inline constexpr int kMaxQueryGroup = 16;  // query heads per KV head
inline constexpr int kMaxQueryTokens = 4;  // per sequence and step
inline constexpr int kClusterBlocks = 8;   // thread blocks of a cluster (sm_90)

// The work of one thread block: a range of blocks and of 16-bit tiles of one sequence and KV head,
// for up to kColumns query rows. A row is a query token and a head that reads this KV head:
// row = token * group + head. Read by the kernel as it is.
struct AttentionPiece {
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t row_begin;
  std::int32_t rows;        // 0: nothing to do, nor for others of its cluster
  std::int32_t page_begin;  // in the page table: its first block's
  std::int32_t blocks;      // compressed blocks
  std::int32_t tile_begin;  // 16-bit tiles, sinks and window counted as one list
  std::int32_t tiles;
  std::int32_t partial;        // where the partial result goes
  std::int32_t first_partial;  // of the pieces with the same sequence and rows
  std::int32_t partials;       // how many these are; 1: the result is written at once
  std::int32_t
      merges;  // 1: merges them all, as the last of them in the plan; none does in clusters
};
static_assert(sizeof(AttentionPiece) == 48);

// One sequence as the plan sees it.
struct AttentionLength {
  int blocks = 0;      // compressed blocks
  int raw_tokens = 0;  // sinks and window together, at least 1
  int page_begin = 0;  // in the page table: its first block's
};

struct AttentionShape {
  int kv_heads = 0;
  int query_rows = 0;   // of each KV head: 1..kMaxQueryGroup * kMaxQueryTokens
  int slots = 0;        // thread blocks that the device holds at once
  int warps = 0;        // of a thread block
  float tile_cost = 1;  // of a 16-bit tile, in compressed blocks
  // Whether what is left of long pieces may be cut finer: several thread blocks of a
  // multiprocessor cover what another one's start and end take.
  bool has_tails = false;
  // Whether thread blocks run in clusters, which merge among themselves, through each other's
  // shared memory: each head is then kClusterBlocks pieces, one after the other, the last of them
  // empty where there is too little for all. No tails, and slots for a cluster of each head.
  bool clustered = false;
};

struct AttentionPlan {
  std::vector<AttentionPiece> pieces;  // longest first where they do not all fit at once
  bool has_tails = false;              // more pieces than slots, where there would not have to be
};

// Cuts the work of one decode step, the same for all layers, into pieces of about equal length:
// one per slot where the slots suffice for all heads of all sequences, else several times as many.
// Pieces of one head are equal to a block, so that their warps take the same number of rounds.
// Pure: the same lengths give the same plan, hence the same bits.
AttentionPlan PlanAttention(std::span<const AttentionLength> lengths, const AttentionShape& shape);

// Of all sequences, each once for every kColumns query rows of a KV head.
int Heads(int sequences, const AttentionShape& shape);
// The most pieces that any plan of up to `sequences` sequences has, with tails if the shape may
// have them: the size of device buffers and of launches that live as long as a captured graph.
int MaxPieces(int sequences, const AttentionShape& shape);

}  // namespace kvferry::kernels
