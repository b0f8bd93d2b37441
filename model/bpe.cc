#include "model/bpe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

// Code points of the alphabet end before this one: 256 bytes, of which 68 are moved to 256 + n.
constexpr std::size_t kAlphabetEnd = 256 + 68;

// Code point to byte, -1 for those that stand for none.
std::array<std::int16_t, kAlphabetEnd> MakeByteAlphabet() {
  std::array<std::int16_t, kAlphabetEnd> bytes;
  bytes.fill(-1);
  std::size_t moved = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    bytes[printable ? static_cast<std::size_t>(byte) : moved++] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}

std::uint64_t PairKey(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// std::push_heap keeps the largest in front: the best candidate is the largest.
bool Worse(const BytePairEncoder::Scratch::Candidate& a,
           const BytePairEncoder::Scratch::Candidate& b) {
  return std::pair(a.rank, a.left) > std::pair(b.rank, b.left);
}

}  // namespace

std::optional<std::string> DecodeByteAlphabet(std::string_view token) {
  static const std::array<std::int16_t, kAlphabetEnd> alphabet = MakeByteAlphabet();
  std::string bytes;
  bytes.reserve(token.size());
  for (std::size_t at = 0; at < token.size();) {
    const Utf8Prefix prefix = FirstUtf8(token.substr(at));
    if (prefix.kind != Utf8Prefix::Kind::kCharacter || prefix.bytes > 2) return std::nullopt;
    const auto first = static_cast<unsigned char>(token[at]);
    const std::size_t code_point =
        prefix.bytes == 1
            ? first
            : (first & 0x1Fu) << 6 | (static_cast<unsigned char>(token[at + 1]) & 0x3Fu);
    if (code_point >= kAlphabetEnd || alphabet[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(alphabet[code_point]));
    at += prefix.bytes;
  }
  return bytes;
}

absl::StatusOr<BytePairEncoder> BytePairEncoder::Create(std::span<const std::string> tokens,
                                                        std::span<const std::string> merges,
                                                        std::optional<std::int32_t> unknown,
                                                        bool whole_pieces_first) {
  IdByBytes ids;
  ids.reserve(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    std::optional<std::string> bytes = DecodeByteAlphabet(tokens[id]);
    if (bytes) ids.try_emplace(*std::move(bytes), static_cast<std::int32_t>(id));
  }
  BytePairEncoder encoder;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(std::string(1, static_cast<char>(byte)));
    encoder.byte_ids_[static_cast<std::size_t>(byte)] =
        found != ids.end() ? found->second : unknown.value_or(kNone);
  }
  encoder.merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const absl::Status status =
        encoder.AddMerge(merges[rank], static_cast<std::int32_t>(rank), ids);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", rank, " is ", Quoted(merges[rank]), ": ", status.message()));
    }
  }
  if (whole_pieces_first) encoder.whole_pieces_ = std::move(ids);
  return encoder;
}

absl::Status BytePairEncoder::AddMerge(std::string_view merge, std::int32_t rank,
                                       const IdByBytes& ids) {
  const std::size_t space = merge.find(' ');
  if (space == std::string_view::npos) {
    return absl::InvalidArgumentError("not two tokens with a space between");
  }
  const std::optional<std::string> left = DecodeByteAlphabet(merge.substr(0, space));
  const std::optional<std::string> right = DecodeByteAlphabet(merge.substr(space + 1));
  if (!left || !right || left->empty() || right->empty()) {
    return absl::InvalidArgumentError("not in the byte-level alphabet");
  }
  const auto left_id = ids.find(*left), right_id = ids.find(*right);
  const auto merged_id = ids.find(*left + *right);
  if (left_id == ids.end() || right_id == ids.end() || merged_id == ids.end()) {
    return absl::InvalidArgumentError("a part or the result is not in the vocabulary");
  }
  merges_.insert_or_assign(PairKey(left_id->second, right_id->second),
                           Merge{rank, merged_id->second});
  return absl::OkStatus();
}

void BytePairEncoder::Propose(Scratch& scratch, std::int32_t left) const {
  if (left == kNone) return;
  const Scratch::Symbol& symbol = scratch.symbols[static_cast<std::size_t>(left)];
  if (symbol.next == kNone) return;
  const auto found =
      merges_.find(PairKey(symbol.id, scratch.symbols[static_cast<std::size_t>(symbol.next)].id));
  if (found == merges_.end()) return;
  scratch.heap.push_back({found->second.rank, left, found->second.id});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), Worse);
}

void BytePairEncoder::Encode(std::string_view piece, Scratch& scratch,
                             std::vector<std::int32_t>& ids) const {
  if (!whole_pieces_.empty()) {
    const auto whole = whole_pieces_.find(piece);
    if (whole != whole_pieces_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  for (const char c : piece) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id == kNone) continue;
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = kNone;
  for (std::size_t at = 0; at + 1 < symbols.size(); ++at) {
    Propose(scratch, static_cast<std::int32_t>(at));
  }
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), Worse);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[static_cast<std::size_t>(best.left)];
    if (left.id == kNone || left.next == kNone) continue;
    Scratch::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // A neighbour may have changed since this was proposed: then it is another pair, or none.
    const auto found = merges_.find(PairKey(left.id, right.id));
    if (found == merges_.end() || found->second.id != best.merged) continue;
    left.id = best.merged;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) symbols[static_cast<std::size_t>(left.next)].previous = best.left;
    Propose(scratch, left.previous);
    Propose(scratch, best.left);
  }
  for (std::int32_t at = 0; at != kNone; at = symbols[static_cast<std::size_t>(at)].next) {
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
  }
}

}  // namespace kvferry::model
