#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace kvferry::model {

// GPT-2's alphabet, in which vocabularies and merges are written: each byte is one printable
// character. Nothing when `token` has a character outside of it.
std::optional<std::string> DecodeByteAlphabet(std::string_view token);

// Byte-pair encoding of one pre-tokenized piece. Immutable. Thread: any.
class BytePairEncoder {
 public:
  // Reused between pieces of one call.
  struct Scratch;

  // tokens: by id, in the byte alphabet (empty: no such id). merges: "left right", best first.
  // unknown: the id for a byte that has no token of its own; without it such bytes are skipped, as
  // the `tokenizers` package does. kInvalidArgument names the merge that is malformed or whose
  // parts or result are not tokens.
  static absl::StatusOr<BytePairEncoder> Create(std::span<const std::string> tokens,
                                                std::span<const std::string> merges,
                                                std::optional<std::int32_t> unknown,
                                                bool whole_pieces_first);

  // Appends the ids of `piece` (raw bytes). O(n log n) in its length.
  void Encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t id;
  };
  struct BytesHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view bytes) const {
      return std::hash<std::string_view>{}(bytes);
    }
  };
  using IdByBytes = absl::flat_hash_map<std::string, std::int32_t, BytesHash, std::equal_to<>>;
  using MergeMap = absl::flat_hash_map<std::uint64_t, Merge>;

  BytePairEncoder() = default;
  absl::Status AddMerge(std::string_view merge, std::int32_t rank, const IdByBytes& ids);
  void Propose(Scratch& scratch, std::int32_t left) const;

  static constexpr std::int32_t kNone = -1;
  std::array<std::int32_t, 256> byte_ids_{};
  MergeMap merges_;
  // Raw bytes of a token to its id, kept only when whole pieces are looked up before merging (what
  // Llama 3 calls ignore_merges).
  IdByBytes whole_pieces_;
};

struct BytePairEncoder::Scratch {
  struct Symbol {
    std::int32_t id;
    std::int32_t previous, next;  // kNone at the ends; id kNone: merged away
  };
  struct Candidate {
    std::int32_t rank, left, merged;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;  // smallest (rank, left) first
};

}  // namespace kvferry::model
