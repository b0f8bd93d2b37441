#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "kernels/dequantize_block.h"
#include "kernels/device/lut_tables.cuh"
#include "kvcodec/describe.h"
#include "kvcodec/format.h"

namespace kvferry::kernels {
namespace {

namespace format = codec::format;
using codec::BlockKind;
using codec::Raw16;

constexpr int kThreads = 256;

__device__ __forceinline__ std::uint16_t half_at(const std::byte* from, int index) {
  return reinterpret_cast<const std::uint16_t*>(from)[index];
}
__device__ __forceinline__ float float_of(std::uint16_t half) {
  return __half2float(__ushort_as_half(half));
}

__device__ std::uint32_t code_at(const std::uint32_t* words, const format::CodePlace& place,
                                 int bits) {
  if (place.spread == 0) return words[place.word] >> place.shift & ((1u << bits) - 1);
  std::uint32_t code = 0;
  for (int i = 0; i < bits; ++i) {
    code |= (words[place.word + i * place.spread] >> place.shift & 1u) << i;
  }
  return code;
}

__device__ float scalar_value(const std::byte* block, const codec::BlockSpec& spec, bool is_v,
                              int token, int channel) {
  const int d = spec.head_dim;
  const format::ScalarLayout at =
      format::ScalarBlock(d, spec.k_bits, spec.v_bits, spec.k_group_tokens, spec.v_group_channels);
  const int bits = is_v ? spec.v_bits : spec.k_bits;
  const format::CodePlace place =
      is_v ? format::VPlace(bits, d, token, channel) : format::KPlace(bits, d, token, channel);
  const int index = is_v ? format::VScaleIndex(spec.v_group_channels, token, channel)
                         : format::KScaleIndex(d, spec.k_group_tokens, token, channel);
  const auto* words =
      reinterpret_cast<const std::uint32_t*>(block + (is_v ? at.v_codes : at.k_codes));
  const std::uint32_t code = code_at(words, place, bits);
  const float scale = float_of(half_at(block + (is_v ? at.v_scale : at.k_scale), index));
  const float min = float_of(half_at(block + (is_v ? at.v_min : at.k_min), index));
  return __fadd_rn(__fmul_rn(scale, static_cast<float>(code)), min);
}

__device__ float lut_value(const std::byte* block, const codec::BlockSpec& spec, bool is_v,
                           int token, int channel) {
  const int d = spec.head_dim;
  const DeviceLut& lut = device_luts.of[static_cast<int>(spec.table)];
  const format::LutLayout at = format::LutBlock(d, lut.bits, lut.shifted_keys);
  const auto* words =
      reinterpret_cast<const std::uint32_t*>(block + (is_v ? at.v_codes : at.k_codes));
  const format::CodePlace place = is_v ? format::VPlace(lut.bits, d, token, channel)
                                       : format::KPlace(lut.bits, d, token, channel);
  const std::uint16_t scale = is_v ? half_at(block + at.v_scale, format::VScalePosition(token))
                                   : half_at(block + at.k_scale, format::KScalePosition(token));
  const float value = __fmul_rn(float_of(scale), lut.levels[code_at(words, place, lut.bits)]);
  if (is_v || !lut.shifted_keys) return value;
  return __fadd_rn(value, float_of(half_at(block + at.k_zero, channel)));
}

// Of an E4M3 number: its bits moved to those of a half are 2^-8 times as much.
__device__ __forceinline__ float e4m3_value(std::uint32_t code) {
  return float_of(static_cast<std::uint16_t>((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
}

__device__ float value_of(const std::byte* block, const codec::BlockSpec& spec, bool is_v,
                          int token, int channel) {
  const int d = spec.head_dim, i = token * d + channel;
  if (spec.kind == BlockKind::kScalar) return scalar_value(block, spec, is_v, token, channel);
  if (spec.kind == BlockKind::kLut) return lut_value(block, spec, is_v, token, channel);
  if (spec.kind == BlockKind::kInt8 || spec.kind == BlockKind::kFp8) {
    const format::TokenScaleLayout at = format::Int8Block(d);
    const auto code = static_cast<std::uint8_t>(block[(is_v ? at.v_codes : at.k_codes) + i]);
    const float scale = float_of(half_at(block + (is_v ? at.v_scale : at.k_scale), token));
    const float value = spec.kind == BlockKind::kFp8
                            ? e4m3_value(code)
                            : static_cast<float>(static_cast<std::int8_t>(code));
    return __fmul_rn(scale, value);
  }
  const format::Raw16Layout at = format::Raw16Block(d);
  const std::uint16_t raw = half_at(block + (is_v ? at.v : at.k), i);
  return spec.raw_type == Raw16::kFp16 ? float_of(raw) : __uint_as_float(std::uint32_t{raw} << 16);
}

__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void put(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

// Grid (pieces of a head, kv_heads, pages).
template <class T>
__global__ void dequantize_block_kernel(const __grid_constant__ DequantizeParams params,
                                        std::size_t block_bytes) {
  const int values = format::kTokens * params.spec.head_dim;
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= 2 * values) return;
  const bool is_v = i >= values;
  const int at = is_v ? i - values : i;
  const int token = at / params.spec.head_dim, channel = at % params.spec.head_dim;
  const std::size_t head = std::size_t{blockIdx.z} * params.kv_heads + blockIdx.y;
  const std::byte* page = params.pages[blockIdx.z];
  T* out = static_cast<T*>(is_v ? params.v : params.k) + head * values + at;
  put(out, value_of(page + blockIdx.y * block_bytes, params.spec, is_v, token, channel));
}

}  // namespace

absl::Status LaunchDequantizeBlock(const DequantizeParams& params, Stream& stream) {
  if (const absl::Status status = params.spec.Validate(); !status.ok()) return status;
  switch (params.spec.kind) {
    case BlockKind::kRaw16:
    case BlockKind::kInt8:
    case BlockKind::kFp8:
    case BlockKind::kLut:
    case BlockKind::kScalar:
      break;
    default:
      return absl::UnimplementedError(
          absl::StrCat("dequantize_block: ", codec::SpecText(params.spec),
                       " is not compiled. There are raw16, int8, fp8, lut and scalar"));
  }
  if (params.page_count < 0 || params.page_count > 65535 || params.kv_heads <= 0 ||
      params.kv_heads > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("dequantize_block: ", params.page_count,
                                                   " pages of ", params.kv_heads,
                                                   " heads; at most 65535 of each"));
  }
  if (params.page_count == 0) return absl::OkStatus();
  if (params.pages == nullptr || params.k == nullptr || params.v == nullptr) {
    return absl::InvalidArgumentError("dequantize_block: pages, k or v is null");
  }
  const dim3 grid(2 * format::kTokens * params.spec.head_dim / kThreads, params.kv_heads,
                  params.page_count);
  const std::size_t block_bytes = codec::BlockBytes(params.spec);
  switch (params.type) {
    case DequantizedType::kFp32:
      dequantize_block_kernel<float><<<grid, kThreads, 0, stream.get()>>>(params, block_bytes);
      break;
    case DequantizedType::kFp16:
      dequantize_block_kernel<__half><<<grid, kThreads, 0, stream.get()>>>(params, block_bytes);
      break;
    case DequantizedType::kBf16:
      dequantize_block_kernel<__nv_bfloat16>
          <<<grid, kThreads, 0, stream.get()>>>(params, block_bytes);
      break;
  }
  return LaunchStatus("dequantize_block");
}

}  // namespace kvferry::kernels
