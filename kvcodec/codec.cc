#include "kvcodec/codec.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvcodec/field_hash.h"
#include "kvcodec/format.h"
#include "kvcodec/profile.h"

namespace kvferry::codec {
namespace {

constexpr int kMaxSinks = 4096;
constexpr int kMaxRecent = 1 << 20;
constexpr int kMaxLayer = 4095;
constexpr absl::string_view kCodebooksParameter = "codebooks";
constexpr std::size_t kCodebooksDigits = 16;

bool IsKGroup(int tokens) { return tokens == 32 || tokens == 64; }
bool IsVGroup(int channels) { return channels == 32 || channels == 64 || channels == 128; }

absl::Status BadSpec(std::string_view what, int value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("block spec: ", ToAbsl(what), " is ", value, ", must be ", ToAbsl(allowed)));
}

Codec Plain(std::string name, BlockKind kind, Raw16 raw_type) {
  Codec codec;
  codec.name = std::move(name);
  codec.kind = kind;
  codec.raw_type = raw_type;
  return codec;
}

// The paper's groups and window (KIVI, arXiv 2402.02750, table 3).
Codec Kivi(std::string name, int k_bits, int v_bits) {
  Codec codec = Plain(std::move(name), BlockKind::kScalar, Raw16::kFp16);
  codec.k_bits = k_bits;
  codec.v_bits = v_bits;
  codec.k_group_tokens = 32;
  codec.v_group_channels = 32;
  codec.window.recent = 128;
  return codec;
}

// One group per block and channel, and per token and head: fewer scales, shorter window.
Codec KiviG64(std::string name, int k_bits, int v_bits) {
  Codec codec = Kivi(std::move(name), k_bits, v_bits);
  codec.k_group_tokens = 64;
  codec.v_group_channels = 128;
  codec.window.recent = 64;
  return codec;
}

// NQKV's rule (arXiv 2505.16210): no sinks and no window, whole blocks are quantized at once.
Codec Nqkv(std::string name, LutTable table) {
  Codec codec = Plain(std::move(name), BlockKind::kLut, Raw16::kFp16);
  codec.table = table;
  codec.window = {.sinks = 0, .recent = 0};
  return codec;
}

// A zero point is of a whole block, and sinks would stretch its range: the window of the baselines.
Codec Shifted(std::string name, LutTable table) {
  Codec codec = Plain(std::move(name), BlockKind::kLut, Raw16::kFp16);
  codec.table = table;
  return codec;
}

// Codebooks of `bits` for groups of `channels` (CQ, arXiv 2405.03917, whose accuracy is with a
// window of 32).
Codec Coupled(std::string name, int channels, int bits) {
  Codec codec = Plain(std::move(name), BlockKind::kCoupled, Raw16::kFp16);
  codec.coupling = {channels, bits};
  codec.window.recent = 32;
  return codec;
}

// All but the profiles, which are made from these.
std::vector<Codec> PlainCodecs() {
  return {Plain("fp16", BlockKind::kRaw16, Raw16::kFp16),
          Plain("bf16", BlockKind::kRaw16, Raw16::kBf16),
          Plain("int8", BlockKind::kInt8, Raw16::kFp16),
          Plain("fp8", BlockKind::kFp8, Raw16::kFp16),
          Nqkv("nqkv-nf4", LutTable::kNf4),
          Nqkv("nf3", LutTable::kNf3),
          Nqkv("lm3", LutTable::kLm3),
          Nqkv("lm2", LutTable::kLm2),
          Shifted("anf4", LutTable::kAnf4),
          Kivi("kivi-4", 4, 4),
          Kivi("kivi-2", 2, 2),
          Kivi("kivi-k4v2", 4, 2),
          KiviG64("kivi-4-g64", 4, 4),
          KiviG64("kivi-2-g64", 2, 2),
          KiviG64("kivi-k4v2-g64", 4, 2),
          Coupled("cq-2c8b", 2, 8),
          Coupled("cq-4c8b", 4, 8),
          Coupled("cq-8c8b", 8, 8),
          Coupled("cq-8c10b", 8, 10),
          Coupled("cq-2c4b", 2, 4)};
}

struct Parameter {
  absl::string_view key;
  absl::string_view allowed;
};

constexpr std::array kParameters = {
    Parameter{"sinks", "0..4096"},
    Parameter{"recent", "0..1048576"},
    Parameter{"raw", "fp16, bf16"},
    Parameter{"k_bits", "1, 2, 3, 4, 8"},
    Parameter{"v_bits", "1, 2, 3, 4, 8"},
    Parameter{"k_group", "32, 64"},
    Parameter{"v_group", "32, 64, 128"},
    Parameter{"codebooks", "the hash of the codebooks, 16 hex digits"},
    Parameter{"layer.N", "K/V with bits of 1, 2, 3, 4, 8, or 16/16"},
};

absl::Status BadParameter(absl::string_view codec, absl::string_view key, absl::string_view value,
                          absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("codec ", codec, ": parameter ", key, "=", value,
                                                 " is not valid, allowed: ", allowed));
}

absl::Status ScalarOnly(const Codec& codec, absl::string_view key) {
  if (codec.kind == BlockKind::kScalar) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codec ", codec.name, ": parameter ", key,
                                                 " is for codecs with groups (kivi-*) only"));
}

// "8/4" -> K 8 bits, V 4 bits.
bool ParseBitsPair(absl::string_view text, LayerOverride& bits) {
  const std::pair<absl::string_view, absl::string_view> sides =
      absl::StrSplit(text, absl::MaxSplits('/', 1));
  if (!absl::SimpleAtoi(sides.first, &bits.k_bits) ||
      !absl::SimpleAtoi(sides.second, &bits.v_bits)) {
    return false;
  }
  return (IsLayerBits(bits.k_bits) && IsLayerBits(bits.v_bits)) ||
         bits == LayerOverride{kRawBits, kRawBits};
}

absl::Status SetLayer(Codec& codec, absl::string_view key, absl::string_view value) {
  int layer = -1;
  LayerOverride bits;
  if (!absl::SimpleAtoi(key.substr(6), &layer) || layer < 0 || layer > kMaxLayer) {
    return BadParameter(codec.name, key, value, "layer.0 .. layer.4095");
  }
  if (!ParseBitsPair(value, bits)) {
    return BadParameter(codec.name, key, value, kParameters.back().allowed);
  }
  codec.layers[layer] = bits;
  return absl::OkStatus();
}

absl::Status SetCodebooks(Codec& codec, absl::string_view key, absl::string_view value) {
  if (codec.kind != BlockKind::kCoupled) {
    return absl::InvalidArgumentError(absl::StrCat("codec ", codec.name, ": parameter ", key,
                                                   " is for coupled codecs (cq-*) only"));
  }
  if (value.size() != kCodebooksDigits || !absl::SimpleHexAtoi(value, &codec.codebooks_hash) ||
      codec.codebooks_hash == 0) {
    return BadParameter(codec.name, key, value, "16 hex digits; an operator may give a file");
  }
  return absl::OkStatus();
}

absl::Status SetParameter(Codec& codec, absl::string_view key, absl::string_view value) {
  const bool is_layer = absl::StartsWith(key, "layer.");
  if (key == kCodebooksParameter) return SetCodebooks(codec, key, value);
  if (is_layer || (key != "sinks" && key != "recent" && key != "raw")) {
    const auto known = std::find_if(kParameters.begin(), kParameters.end(),
                                    [&](const Parameter& p) { return p.key == key; });
    if (!is_layer && known == kParameters.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "codec ", codec.name, ": unknown parameter '", key,
          "', known: ", absl::StrJoin(kParameters, ", ", [](std::string* out, const Parameter& p) {
            absl::StrAppend(out, p.key);
          })));
    }
    KVF_RETURN_IF_ERROR(ScalarOnly(codec, key));
  }
  if (is_layer) return SetLayer(codec, key, value);
  if (key == "raw") {
    if (value != "fp16" && value != "bf16") {
      return BadParameter(codec.name, key, value, "fp16, bf16");
    }
    const Raw16 type = value == "fp16" ? Raw16::kFp16 : Raw16::kBf16;
    if (codec.kind == BlockKind::kRaw16 && type != codec.raw_type) {
      return BadParameter(codec.name, key, value, "its own type; use the codec of that name");
    }
    codec.raw_type = type;
    return absl::OkStatus();
  }
  int number = -1;
  const bool parsed = absl::SimpleAtoi(value, &number);
  for (const Parameter& parameter : kParameters) {
    if (parameter.key != key) continue;
    const bool ok = parsed && (key == "sinks"     ? number >= 0 && number <= kMaxSinks
                               : key == "recent"  ? number >= 0 && number <= kMaxRecent
                               : key == "k_group" ? IsKGroup(number)
                               : key == "v_group" ? IsVGroup(number)
                                                  : format::IsBits(number));
    if (!ok) return BadParameter(codec.name, key, value, parameter.allowed);
  }
  if (key == "sinks") codec.window.sinks = number;
  if (key == "recent") codec.window.recent = number;
  if (key == "k_bits") codec.k_bits = number;
  if (key == "v_bits") codec.v_bits = number;
  if (key == "k_group") codec.k_group_tokens = number;
  if (key == "v_group") codec.v_group_channels = number;
  return absl::OkStatus();
}

// The base name and what differs from it, in one order.
std::string CanonicalName(const Codec& base, const Codec& codec) {
  std::vector<std::string> parts;
  const auto add = [&](absl::string_view key, int was, int is) {
    if (was != is) parts.push_back(absl::StrCat(key, "=", is));
  };
  add("sinks", base.window.sinks, codec.window.sinks);
  add("recent", base.window.recent, codec.window.recent);
  if (base.raw_type != codec.raw_type) {
    parts.push_back(codec.raw_type == Raw16::kFp16 ? "raw=fp16" : "raw=bf16");
  }
  add("k_bits", base.k_bits, codec.k_bits);
  add("v_bits", base.v_bits, codec.v_bits);
  add("k_group", base.k_group_tokens, codec.k_group_tokens);
  add("v_group", base.v_group_channels, codec.v_group_channels);
  if (codec.codebooks_hash != base.codebooks_hash) {
    parts.push_back(
        absl::StrCat(kCodebooksParameter, "=", absl::Hex(codec.codebooks_hash, absl::kZeroPad16)));
  }
  for (const auto& [layer, bits] : codec.layers) {
    const auto was = base.layers.find(layer);
    if (was != base.layers.end() && was->second == bits) continue;
    parts.push_back(absl::StrCat("layer.", layer, "=", bits.k_bits, "/", bits.v_bits));
  }
  if (parts.empty()) return base.name;
  return absl::StrCat(base.name, ":", absl::StrJoin(parts, ","));
}

absl::Status ValidateCoupled(const BlockSpec& spec) {
  if (!IsCoupling(spec.coupling)) {
    return absl::InvalidArgumentError(
        absl::StrCat("block spec: ", spec.coupling.channels, " coupled channels with ",
                     spec.coupling.bits, " bits, must be 2c8b, 4c8b, 8c8b, 8c10b or 2c4b"));
  }
  if (spec.codebooks == nullptr) return absl::OkStatus();
  const CodebookShape& shape = spec.codebooks->shape();
  if (shape.coupling == spec.coupling && shape.head_dim == spec.head_dim && spec.layer >= 0 &&
      spec.layer < shape.layers) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("block spec: the codebooks are of another shape");
}

}  // namespace

absl::Status BlockSpec::Validate() const {
  if (!format::IsHeadDim(head_dim)) return BadSpec("head_dim", head_dim, "64, 96, 128 or 256");
  if (kind == BlockKind::kInt8 || kind == BlockKind::kFp8) return absl::OkStatus();
  if (kind == BlockKind::kRaw16) {
    if (raw_type == Raw16::kFp16 || raw_type == Raw16::kBf16) return absl::OkStatus();
    return BadSpec("raw_type", static_cast<int>(raw_type), "1 (fp16) or 2 (bf16)");
  }
  if (kind == BlockKind::kLut) {
    if (FindLut(table) != nullptr) return absl::OkStatus();
    return BadSpec("table", static_cast<int>(table),
                   "1 (nf4), 2 (nf3), 3 (lm3), 4 (lm2) or 5 (anf4)");
  }
  if (kind == BlockKind::kCoupled) return ValidateCoupled(*this);
  if (kind != BlockKind::kScalar) {
    return BadSpec("kind", static_cast<int>(kind),
                   "1 (raw16), 2 (scalar), 3 (int8), 4 (fp8), 5 (lut) or 6 (coupled)");
  }
  if (!format::IsBits(k_bits)) return BadSpec("k_bits", k_bits, "1, 2, 3, 4 or 8");
  if (!format::IsBits(v_bits)) return BadSpec("v_bits", v_bits, "1, 2, 3, 4 or 8");
  if (!IsKGroup(k_group_tokens)) return BadSpec("k_group_tokens", k_group_tokens, "32 or 64");
  if (!IsVGroup(v_group_channels) || head_dim % v_group_channels != 0) {
    return BadSpec("v_group_channels", v_group_channels, "32, 64 or 128 and a divisor of head_dim");
  }
  return absl::OkStatus();
}

absl::Status CheckCodebooks(const BlockSpec& spec, int kv_heads) {
  if (spec.kind != BlockKind::kCoupled) return absl::OkStatus();
  if (spec.codebooks == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "codec cq-", spec.coupling.channels, "c", spec.coupling.bits,
        "b needs codebooks: make them with `kvferry calibrate codebooks` and name the codec with "
        "codebooks=FILE"));
  }
  if (kv_heads <= spec.codebooks->shape().kv_heads) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codebooks of ", spec.codebooks->shape().kv_heads,
                                                 " KV heads, there are ", kv_heads));
}

std::size_t BlockBytes(const BlockSpec& spec) {
  switch (spec.kind) {
    case BlockKind::kRaw16:
      return format::Raw16Block(spec.head_dim).bytes;
    case BlockKind::kInt8:
      return format::Int8Block(spec.head_dim).bytes;
    case BlockKind::kFp8:
      return format::Fp8Block(spec.head_dim).bytes;
    case BlockKind::kLut: {
      const Lut& lut = *FindLut(spec.table);
      return format::LutBlock(spec.head_dim, lut.bits, lut.shifted_keys).bytes;
    }
    case BlockKind::kCoupled:
      return format::CoupledBlock(spec.head_dim, spec.coupling.channels, spec.coupling.bits).bytes;
    case BlockKind::kScalar:
      break;
  }
  return format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits, spec.k_group_tokens,
                             spec.v_group_channels)
      .bytes;
}

bool IsLayerBits(std::int64_t bits) {
  return bits >= 1 && bits <= 8 && format::IsBits(static_cast<int>(bits));
}

absl::StatusOr<BlockSpec> Codec::ForLayer(int layer, int head_dim) const {
  const auto found = layers.find(layer);
  const LayerOverride bits = found == layers.end() ? LayerOverride{k_bits, v_bits} : found->second;
  BlockSpec spec;
  spec.kind = bits.k_bits == kRawBits ? BlockKind::kRaw16 : kind;
  spec.head_dim = head_dim;
  if (spec.kind == BlockKind::kRaw16) spec.raw_type = raw_type;
  if (spec.kind == BlockKind::kLut) spec.table = table;
  if (spec.kind == BlockKind::kCoupled) {
    spec.coupling = coupling;
    spec.codebooks = codebooks.get();
    spec.layer = codebooks == nullptr ? 0 : layer;
  }
  if (spec.kind == BlockKind::kScalar) {
    spec.k_bits = bits.k_bits;
    spec.v_bits = bits.v_bits;
    spec.k_group_tokens = k_group_tokens;
    spec.v_group_channels = v_group_channels;
    // The largest group that fits: 128 becomes 64 at head_dim 64 and 32 at head_dim 96.
    while (spec.v_group_channels > 32 && head_dim % spec.v_group_channels != 0) {
      spec.v_group_channels /= 2;
    }
  }
  KVF_RETURN_IF_ERROR(spec.Validate());
  return spec;
}

std::uint64_t Codec::Hash() const {
  FieldHash hash;
  const std::array fields = {static_cast<int>(version),
                             static_cast<int>(kind),
                             static_cast<int>(raw_type),
                             k_bits,
                             v_bits,
                             k_group_tokens,
                             v_group_channels,
                             window.sinks,
                             window.recent,
                             static_cast<int>(layers.size())};
  for (const int field : fields) hash.Add(static_cast<std::uint32_t>(field));
  for (const auto& [layer, bits] : layers) {
    hash.Add(static_cast<std::uint32_t>(layer));
    hash.Add(static_cast<std::uint32_t>(bits.k_bits));
    hash.Add(static_cast<std::uint32_t>(bits.v_bits));
  }
  if (kind == BlockKind::kLut) hash.Add(static_cast<std::uint32_t>(table));
  if (kind == BlockKind::kCoupled) {
    hash.Add(static_cast<std::uint32_t>(coupling.channels));
    hash.Add(static_cast<std::uint32_t>(coupling.bits));
    hash.Add(static_cast<std::uint32_t>(codebooks_hash));
    hash.Add(static_cast<std::uint32_t>(codebooks_hash >> 32));
  }
  return hash.value();
}

absl::Status Codec::FitsModel(const CacheGeometry& geometry) const {
  if (model_layers != 0 && model_layers != geometry.layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec ", name, " is a profile for a model of ", model_layers, " layers, this one has ",
        geometry.layers, ": make one with `kvferry calibrate profile`"));
  }
  if (codebooks == nullptr) return absl::OkStatus();
  absl::Status status = codebooks->FitsModel(geometry);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("codec ", name, ": ", status.message()));
}

absl::Status Codec::Complete(const CodebookSet& set) {
  if (kind != BlockKind::kCoupled || codebooks != nullptr) return absl::OkStatus();
  const auto found = set.find(codebooks_hash);
  if (found != set.end() && found->second->shape().coupling == coupling) {
    codebooks = found->second;
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat(
      "codec ", name, ": its codebooks have not been read here; those that have: ",
      set.empty() ? "none" : absl::StrJoin(set, ", ", [](std::string* out, const auto& entry) {
        absl::StrAppend(out, absl::Hex(entry.first, absl::kZeroPad16));
      })));
}

double Codec::BitsPerValue(int head_dim) const {
  // Without a profile, of a layer that has no override.
  const int first = model_layers == 0 ? -1 : 0;
  const int count = std::max(1, model_layers);
  double bytes = 0;
  Codec sizes = *this;
  sizes.codebooks = nullptr;  // they are the same for all layers, and none is for no layer
  for (int layer = first; layer < first + count; ++layer) {
    const absl::StatusOr<BlockSpec> spec = sizes.ForLayer(layer, head_dim);
    if (!spec.ok()) return 0;
    bytes += static_cast<double>(BlockBytes(*spec));
  }
  return 8.0 * bytes / count / (2.0 * kBlockTokens * head_dim);
}

std::vector<Codec> RegisteredCodecs() {
  std::vector<Codec> codecs = PlainCodecs();
  for (const Codec& codec : BuiltInProfileCodecs()) codecs.push_back(codec);
  return codecs;
}

std::uint64_t RegistryHash() {
  FieldHash hash;
  for (const Codec& codec : RegisteredCodecs()) {
    for (const char c : codec.name) hash.Add(static_cast<unsigned char>(c));
    const std::uint64_t bytes = codec.Hash();
    hash.Add(static_cast<std::uint32_t>(bytes));
    hash.Add(static_cast<std::uint32_t>(bytes >> 32));
  }
  return hash.value();
}

absl::StatusOr<Codec> FindCodec(std::string_view name) {
  const bool is_profile = absl::StartsWith(ToAbsl(name), ToAbsl(kProfilePrefix));
  const std::size_t colon = name.find(':', is_profile ? kProfilePrefix.size() : 0);
  const absl::string_view base_name = ToAbsl(name.substr(0, colon));
  const std::vector<Codec> codecs = is_profile ? BuiltInProfileCodecs() : PlainCodecs();
  const auto base = std::find_if(codecs.begin(), codecs.end(),
                                 [&](const Codec& codec) { return base_name == codec.name; });
  if (base == codecs.end()) {
    return absl::NotFoundError(absl::StrCat(
        "unknown codec '", base_name, "', known: ",
        absl::StrJoin(RegisteredCodecs(), ", ",
                      [](std::string* out, const Codec& codec) { *out += codec.name; })));
  }
  Codec codec = *base;
  const absl::string_view parameters =
      colon == std::string_view::npos ? absl::string_view() : ToAbsl(name.substr(colon + 1));
  for (const absl::string_view parameter : absl::StrSplit(parameters, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> setting =
        absl::StrSplit(parameter, absl::MaxSplits('=', 1));
    KVF_RETURN_IF_ERROR(SetParameter(codec, setting.first, setting.second));
  }
  // An override that changes nothing is not part of the codec: names and hashes stay unique.
  std::erase_if(codec.layers, [&](const auto& entry) {
    return entry.second == LayerOverride{codec.k_bits, codec.v_bits};
  });
  codec.name = CanonicalName(*base, codec);
  return codec;
}

}  // namespace kvferry::codec
