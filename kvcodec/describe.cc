#include "kvcodec/describe.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "kvcodec/code_io.h"
#include "kvcodec/e4m3.h"
#include "kvcodec/format.h"
#include "kvcodec/half.h"

namespace kvferry::codec {
namespace {

// Sums up the finite ones of `count` numbers.
ValueRange RangeOf(int count, const std::function<double(int)>& value) {
  ValueRange range{INFINITY, -INFINITY, 0};
  int finite = 0;
  for (int i = 0; i < count; ++i) {
    const double x = value(i);
    if (!std::isfinite(x)) continue;
    range.min = std::min(range.min, x);
    range.max = std::max(range.max, x);
    range.mean += x;
    ++finite;
  }
  if (finite == 0) return {};
  range.mean /= finite;
  return range;
}

RegionDescription Numbers(std::string name, std::span<const std::byte> block, int offset, int count,
                          Raw16 type) {
  RegionDescription region{
      std::move(name), static_cast<std::size_t>(offset), std::size_t{2} * count, {}, {}, 0, 0};
  const auto at = [&](int i) { return FloatFromRaw16(type, LoadU16(block.data() + offset, i)); };
  region.values = RangeOf(count, at);
  for (int i = 0; i < count; ++i) {
    region.zeros += at(i) == 0 ? 1 : 0;
    region.not_finite += std::isfinite(at(i)) ? 0 : 1;
  }
  return region;
}

RegionDescription Codes(bool is_v, std::span<const std::byte> block, int offset, int bits,
                        int head_dim) {
  RegionDescription region{is_v ? "V codes" : "K codes",
                           static_cast<std::size_t>(offset),
                           static_cast<std::size_t>(format::CodeBytes(bits, head_dim)),
                           {},
                           {},
                           0,
                           0};
  const auto code = [&](int i) {
    const int token = i / head_dim, channel = i % head_dim;
    return GetCode(block.data() + offset,
                   is_v ? format::VPlace(bits, head_dim, token, channel)
                        : format::KPlace(bits, head_dim, token, channel),
                   bits);
  };
  region.values = RangeOf(kBlockTokens * head_dim, code);
  if (bits <= 4) {
    region.counts.resize(std::size_t{1} << bits);
    for (int i = 0; i < kBlockTokens * head_dim; ++i) ++region.counts[code(i)];
  }
  return region;
}

void DescribeScalar(std::span<const std::byte> block, const BlockSpec& spec,
                    std::vector<RegionDescription>& regions) {
  const format::ScalarLayout at = format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits,
                                                      spec.k_group_tokens, spec.v_group_channels);
  const int k_count = (at.k_min - at.k_scale) / 2, v_count = (at.v_min - at.v_scale) / 2;
  regions.push_back(Codes(false, block, at.k_codes, spec.k_bits, spec.head_dim));
  regions.push_back(Numbers("K scales", block, at.k_scale, k_count, Raw16::kFp16));
  regions.push_back(Numbers("K mins", block, at.k_min, k_count, Raw16::kFp16));
  regions.push_back(Codes(true, block, at.v_codes, spec.v_bits, spec.head_dim));
  regions.push_back(Numbers("V scales", block, at.v_scale, v_count, Raw16::kFp16));
  regions.push_back(Numbers("V mins", block, at.v_min, v_count, Raw16::kFp16));
}

// int8 and fp8: value(byte) is what a code says.
void DescribeBytes(std::span<const std::byte> block, const BlockSpec& spec,
                   const format::TokenScaleLayout& at, double (*value)(std::byte),
                   std::vector<RegionDescription>& regions) {
  const int side = kBlockTokens * spec.head_dim;
  const auto add = [&](const char* name, int offset) {
    RegionDescription region{
        name, static_cast<std::size_t>(offset), static_cast<std::size_t>(side), {}, {}, 0, 0};
    region.values = RangeOf(side, [&](int i) { return value(block[offset + i]); });
    for (int i = 0; i < side; ++i)
      region.not_finite += std::isfinite(value(block[offset + i])) ? 0 : 1;
    regions.push_back(region);
  };
  add("K codes", at.k_codes);
  add("V codes", at.v_codes);
  regions.push_back(Numbers("K scales", block, at.k_scale, kBlockTokens, Raw16::kFp16));
  regions.push_back(Numbers("V scales", block, at.v_scale, kBlockTokens, Raw16::kFp16));
}

void DescribeLut(std::span<const std::byte> block, const BlockSpec& spec,
                 std::vector<RegionDescription>& regions) {
  const Lut& lut = *FindLut(spec.table);
  const format::LutLayout at = format::LutBlock(spec.head_dim, lut.bits, lut.shifted_keys);
  regions.push_back(Codes(false, block, at.k_codes, lut.bits, spec.head_dim));
  regions.push_back(Numbers("K scales", block, at.k_scale, kBlockTokens, Raw16::kFp16));
  if (lut.shifted_keys) {
    regions.push_back(Numbers("K zeros", block, at.k_zero, spec.head_dim, Raw16::kFp16));
    regions.back().bytes = static_cast<std::size_t>(at.v_codes - at.k_zero);
  }
  regions.push_back(Codes(true, block, at.v_codes, lut.bits, spec.head_dim));
  regions.push_back(Numbers("V scales", block, at.v_scale, kBlockTokens, Raw16::kFp16));
}

void DescribeCoupled(std::span<const std::byte> block, const BlockSpec& spec,
                     std::vector<RegionDescription>& regions) {
  const Coupling& coupling = spec.coupling;
  const format::CoupledLayout at =
      format::CoupledBlock(spec.head_dim, coupling.channels, coupling.bits);
  const int groups = spec.head_dim / coupling.channels;
  const auto add = [&](const char* name, int offset) {
    const auto code = [&](int i) {
      std::uint32_t bits = 0;
      const int first = i % groups * coupling.bits;  // in the row
      const std::span<const std::byte> row = block.subspan(offset + i / groups * at.row_bytes);
      for (int bit = 0; bit < coupling.bits; ++bit) {
        const auto byte = std::to_integer<std::uint32_t>(row[(first + bit) / 8]);
        bits |= (byte >> ((first + bit) % 8) & 1u) << bit;
      }
      return bits;
    };
    const int count = kBlockTokens * groups;
    RegionDescription region{name,
                             static_cast<std::size_t>(offset),
                             static_cast<std::size_t>(kBlockTokens) * at.row_bytes,
                             {},
                             {},
                             0,
                             0};
    region.values = RangeOf(count, code);
    if (coupling.bits <= 4) {
      region.counts.resize(std::size_t{1} << coupling.bits);
      for (int i = 0; i < count; ++i) ++region.counts[code(i)];
    }
    regions.push_back(region);
  };
  add("K codes", at.k_codes);
  add("V codes", at.v_codes);
}

double Int8Value(std::byte code) { return static_cast<std::int8_t>(code); }
double Fp8Value(std::byte code) {
  const auto bits = static_cast<std::uint8_t>(code);
  return (bits & 0x7fu) == 0x7fu ? NAN : FloatFromE4m3(bits);
}

}  // namespace

std::string SpecText(const BlockSpec& spec) {
  switch (spec.kind) {
    case BlockKind::kRaw16:
      return absl::StrCat("raw16 ", spec.raw_type == Raw16::kFp16 ? "fp16" : "bf16", ", head_dim ",
                          spec.head_dim);
    case BlockKind::kInt8:
      return absl::StrCat("int8, head_dim ", spec.head_dim);
    case BlockKind::kFp8:
      return absl::StrCat("fp8 E4M3, head_dim ", spec.head_dim);
    case BlockKind::kLut: {
      const Lut* lut = FindLut(spec.table);
      return absl::StrCat("lut ", lut == nullptr ? "?" : lut->name, ", head_dim ", spec.head_dim);
    }
    case BlockKind::kCoupled:
      return absl::StrCat("coupled ", spec.coupling.channels, "c", spec.coupling.bits,
                          "b, head_dim ", spec.head_dim);
    case BlockKind::kScalar:
      break;
  }
  return absl::StrCat("scalar K ", spec.k_bits, " bit GK ", spec.k_group_tokens, ", V ",
                      spec.v_bits, " bit GV ", spec.v_group_channels, ", head_dim ", spec.head_dim);
}

absl::StatusOr<BlockDescription> DescribeBlock(std::span<const std::byte> block,
                                               const BlockSpec& spec) {
  KVF_RETURN_IF_ERROR(spec.Validate());
  if (block.size() != BlockBytes(spec)) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", SpecText(spec), " has ",
                                                   BlockBytes(spec), " bytes, not ", block.size()));
  }
  BlockDescription description;
  description.kind = SpecText(spec);
  description.bytes = block.size();
  description.bits_per_value =
      8.0 * static_cast<double>(block.size()) / (2.0 * kBlockTokens * spec.head_dim);
  const int side = kBlockTokens * spec.head_dim;
  switch (spec.kind) {
    case BlockKind::kRaw16:
      description.regions.push_back(
          Numbers("K", block, format::Raw16Block(spec.head_dim).k, side, spec.raw_type));
      description.regions.push_back(
          Numbers("V", block, format::Raw16Block(spec.head_dim).v, side, spec.raw_type));
      break;
    case BlockKind::kInt8:
      DescribeBytes(block, spec, format::Int8Block(spec.head_dim), Int8Value, description.regions);
      break;
    case BlockKind::kFp8:
      DescribeBytes(block, spec, format::Fp8Block(spec.head_dim), Fp8Value, description.regions);
      break;
    case BlockKind::kLut:
      DescribeLut(block, spec, description.regions);
      break;
    case BlockKind::kCoupled:
      DescribeCoupled(block, spec, description.regions);
      break;
    case BlockKind::kScalar:
      DescribeScalar(block, spec, description.regions);
      break;
  }
  return description;
}

std::string ToText(const BlockDescription& block) {
  std::string text = absl::StrFormat("%s: %d bytes, %.3f bits per value\n", block.kind, block.bytes,
                                     block.bits_per_value);
  for (const RegionDescription& region : block.regions) {
    absl::StrAppendFormat(&text, "  %6d %-8s %6d bytes  min %-11.5g max %-11.5g mean %-11.5g",
                          region.offset, region.name, region.bytes, region.values.min,
                          region.values.max, region.values.mean);
    if (!region.counts.empty()) {
      absl::StrAppend(&text, " counts ", absl::StrJoin(region.counts, " "));
    }
    if (region.zeros > 0) absl::StrAppend(&text, " zeros ", region.zeros);
    if (region.not_finite > 0) absl::StrAppend(&text, " NOT FINITE ", region.not_finite);
    absl::StrAppend(&text, "\n");
  }
  return text;
}

}  // namespace kvferry::codec
