#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "tests/kvcodec/kv_samples.h"

// The blocks of tests/golden/codec/make_golden.py, an independent writer in numpy.
namespace kvferry::codec {

inline constexpr char kGoldenFolder[] = "tests/golden/codec/";

struct GoldenCase {
  BlockSpec spec;
  BlockOrigin origin;
  std::shared_ptr<const Codebooks> codebooks;  // of coupled blocks
  Raw16 type;
  std::string line, input;
  std::uint32_t seed = 0;
  std::size_t offset = 0, bytes = 0;
};

inline std::uint32_t GoldenMix(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline constexpr int kGoldenHeads = 2;

// `codebook` and the frequencies of `rotation` of the script.
inline std::shared_ptr<const Codebooks> GoldenCodebooks(int head_dim, const Coupling& coupling) {
  const CodebookShape shape = {1, kGoldenHeads, head_dim, coupling};
  std::vector<float> frequencies;
  for (int i = 0; i < head_dim / 2; ++i) frequencies.push_back(1.0f / static_cast<float>(i + 1));
  std::vector<std::uint16_t> centroids;
  const std::uint32_t count = coupling.centroids(), channels = coupling.channels;
  for (std::uint32_t group = 0; centroids.size() < shape.values(); ++group) {
    for (std::uint32_t code = 0; code < count; ++code) {
      for (std::uint32_t channel = 0; channel < channels; ++channel) {
        const std::uint32_t index = (group * count + code % (count - 3)) * channels + channel;
        const std::uint32_t h = GoldenMix(index + 12345);
        centroids.push_back(
            static_cast<std::uint16_t>(h >> 31 << 15 | (13 + (h >> 16 & 3)) << 10 | (h & 1023)));
      }
    }
  }
  return Codebooks::Create(shape, frequencies, centroids, "{}").value();
}

inline std::vector<GoldenCase> LoadGoldenCases() {
  std::vector<GoldenCase> cases;
  std::ifstream file(std::string(kGoldenFolder) + "cases.txt");
  std::string line, kind, type;
  while (std::getline(file, line)) {
    GoldenCase c;
    std::istringstream(line) >> kind >> c.spec.head_dim >> c.spec.k_bits >> c.spec.v_bits >>
        c.spec.k_group_tokens >> c.spec.v_group_channels >> type >> c.input >> c.seed >> c.offset >>
        c.bytes;
    c.type = type == "fp16" ? Raw16::kFp16 : Raw16::kBf16;
    c.spec.kind = kind == "scalar"    ? BlockKind::kScalar
                  : kind == "int8"    ? BlockKind::kInt8
                  : kind == "fp8"     ? BlockKind::kFp8
                  : kind == "raw16"   ? BlockKind::kRaw16
                  : kind == "coupled" ? BlockKind::kCoupled
                                      : BlockKind::kLut;
    if (c.spec.kind == BlockKind::kCoupled) {
      c.origin = {.kv_head_begin = c.spec.v_group_channels, .token_begin = c.spec.k_group_tokens};
      c.spec = {.kind = c.spec.kind,
                .head_dim = c.spec.head_dim,
                .coupling = {c.spec.k_bits, c.spec.v_bits}};
      c.codebooks = GoldenCodebooks(c.spec.head_dim, c.spec.coupling);
      c.spec.codebooks = c.codebooks.get();
    }
    for (const Lut& lut : kLuts) {
      if (kind == lut.name) c.spec.table = lut.table;
    }
    c.spec.raw_type = c.type;
    c.line = line;
    cases.push_back(c);
  }
  return cases;
}

// `raw_input` of the script.
inline std::uint16_t GoldenValue(const GoldenCase& c, std::uint32_t side, std::uint32_t token,
                                 std::uint32_t channel) {
  const bool fp16 = c.type == Raw16::kFp16;
  const std::uint32_t h = GoldenMix(c.seed * 2654435769u ^ (side * 65536 + token * 256 + channel));
  const std::uint32_t mantissa_bits = fp16 ? 10 : 7, one = fp16 ? 15 : 127;
  std::uint32_t sign = h >> 31 << 15, mantissa = h & ((1u << mantissa_bits) - 1);
  std::uint32_t exponent = one - 2 + (h >> 16 & 3);
  if (c.input == "constant") sign = 0, exponent = one, mantissa = 5;
  if (c.input == "denormal") exponent = fp16 ? 0 : one - 26 + (h >> 16 & 3);
  if (c.input == "outlier" && channel % 16 == 3) exponent = one + 13;
  if (c.input == "offset" && channel % 8 == 1) sign = channel % 16 / 8 << 15, exponent = one + 3;
  if (c.input == "zeros") exponent = mantissa = 0;
  return static_cast<std::uint16_t>(sign | exponent << mantissa_bits | mantissa);
}

inline KvSample MakeGoldenInput(const GoldenCase& c) {
  KvSample kv = MakeKv(1, 64, c.spec.head_dim, c.type, 0);
  for (int token = 0; token < 64; ++token) {
    for (int channel = 0; channel < c.spec.head_dim; ++channel) {
      kv.k[token * c.spec.head_dim + channel] = GoldenValue(c, 0, token, channel);
      kv.v[token * c.spec.head_dim + channel] = GoldenValue(c, 1, token, channel);
    }
  }
  return kv;
}

inline std::vector<std::byte> LoadGoldenBlocks() {
  std::ifstream file(std::string(kGoldenFolder) + "blocks.bin", std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
  return {begin, begin + bytes.size()};
}

}  // namespace kvferry::codec
