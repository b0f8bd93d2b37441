#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcodec/codebooks.h"
#include "kvcodec/kv_view.h"
#include "kvcodec/lut.h"

namespace kvferry::codec {

inline constexpr int kBlockTokens = 64;

// How the bytes of one block are made; the value is on the wire (docs/format.md).
enum class BlockKind : std::uint8_t {
  kRaw16 = 1,    // 16-bit K and V as they left the model: the baseline codecs fp16 and bf16
  kScalar = 2,   // KVB: codes with one scale and min per group (KIVI, arXiv 2402.02750)
  kInt8 = 3,     // signed 8 bit, one scale per token and head: the int8 baseline
  kFp8 = 4,      // E4M3, one scale per token and head: the fp8 baseline
  kLut = 5,      // codes for levels of a table, one scale per token and head (NQKV, Lloyd-Max)
  kCoupled = 6,  // codes for groups of channels, keys before RoPE (CQ, arXiv 2405.03917)
};

// Everything that decides the bytes of one block of one KV head. Valid only when Validate() says
// so.
struct BlockSpec {
  BlockKind kind = BlockKind::kScalar;
  Raw16 raw_type = Raw16::kFp16;  // of kRaw16 blocks
  int head_dim = 0;               // 64, 96, 128, 256
  int k_bits = 0;                 // kScalar: 1, 2, 3, 4, 8
  int v_bits = 0;
  int k_group_tokens = 0;    // GK: 32 or 64
  int v_group_channels = 0;  // GV: 32, 64 or 128, and a divisor of head_dim
  LutTable table{};          // of kLut
  Coupling coupling;         // of kCoupled
  // Of kCoupled blocks whose codes are made or read: the codec's, which outlives the spec. Sizes
  // need none.
  const Codebooks* codebooks = nullptr;
  int layer = 0;  // the one of `codebooks`

  absl::Status Validate() const;
  bool operator==(const BlockSpec&) const = default;
};

// Whether codes of these heads can be made and read. kFailedPrecondition: kCoupled without
// codebooks. kInvalidArgument: they are of fewer heads.
absl::Status CheckCodebooks(const BlockSpec& spec, int kv_heads);

// Bytes of one block of one KV head: a multiple of 128.
std::size_t BlockBytes(const BlockSpec& spec);
// Bytes of a page: the blocks of `kv_heads` heads, head-major.
inline std::size_t PageBytes(const BlockSpec& spec, int kv_heads) {
  return BlockBytes(spec) * kv_heads;
}
// Bytes of n tokens of 16-bit K and V, all heads: [K: kv_heads, n, head_dim][V: the same].
inline std::size_t Raw16Bytes(int tokens, int kv_heads, int head_dim) {
  return std::size_t{2} * 2 * tokens * kv_heads * head_dim;
}

// Which tokens stay in 16 bits.
struct WindowSpec {
  int sinks = 4;    // S: the first tokens
  int recent = 64;  // R: at least this many of the newest
  bool operator==(const WindowSpec&) const = default;
};

// Bits of one layer where they differ from the codec's. 16 for both: that layer stays in 16 bits.
struct LayerOverride {
  int k_bits = 0;
  int v_bits = 0;
  bool operator==(const LayerOverride&) const = default;
};

inline constexpr int kRawBits = 16;
// Whether a layer's keys or values can have so many bits, beside kRawBits for both.
bool IsLayerBits(std::int64_t bits);

// A named way to store the cache. A codec is data: immutable, copyable, comparable.
struct Codec {
  std::string name;  // as the user wrote it, canonical: "kivi-4-g64", "kivi-2:sinks=8,recent=64"
  std::uint32_t version = 1;
  BlockKind kind = BlockKind::kScalar;
  Raw16 raw_type = Raw16::kFp16;  // of sinks, window and raw16 blocks
  int k_bits = 0, v_bits = 0;
  int k_group_tokens = 0;
  int v_group_channels = 0;  // clamped to head_dim where the head is smaller
  LutTable table{};          // of kLut
  Coupling coupling;         // of kCoupled
  // Of kCoupled: Codebooks::hash, 0: not said yet, and they themselves where they have been read.
  std::uint64_t codebooks_hash = 0;
  std::shared_ptr<const Codebooks> codebooks;
  WindowSpec window;
  std::map<int, LayerOverride> layers;  // by layer index
  int model_layers = 0;  // a profile's: the only number of layers that it is for; 0: any

  // The block of `layer` for heads of `head_dim` channels. kInvalidArgument: a combination that no
  // backend has.
  absl::StatusOr<BlockSpec> ForLayer(int layer, int head_dim) const;
  // Hash of every field that changes a byte. In each chunk header and in the fingerprint.
  std::uint64_t Hash() const;
  // kInvalidArgument: a profile or codebooks that were made for a model of another shape.
  absl::Status FitsModel(const CacheGeometry& geometry) const;
  // Whether it is coupled and nobody has said which codebooks it has.
  bool NeedsCodebooks() const { return kind == BlockKind::kCoupled && codebooks == nullptr; }
  // Puts in the codebooks that the name speaks of. kNotFound: `set` has not got them.
  absl::Status Complete(const CodebookSet& set);
  // Bits per stored value in a compressed block, scales and mins included; of a profile, the mean
  // over its layers.
  double BitsPerValue(int head_dim) const;
};

inline constexpr std::string_view kDefaultCodec = "kivi-4-g64";

// Finds a codec by name, with parameters after a colon:
// "kivi-2-g64:sinks=4,recent=128,layer.0=8/8", "kvtuner:c3:recent=128". Keys: sinks, recent,
// k_bits, v_bits, k_group, v_group, layer.N=K/V, and codebooks=HASH (16 hex digits) for coupled
// ones. kNotFound names the known codecs; kInvalidArgument names the parameter and its allowed
// values.
absl::StatusOr<Codec> FindCodec(std::string_view name);
// All registered codecs, in the order in which to list them.
std::vector<Codec> RegisteredCodecs();
// Of all registered names and hashes: `codecs_hash` of the fingerprint.
std::uint64_t RegistryHash();

}  // namespace kvferry::codec
