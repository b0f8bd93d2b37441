#!/usr/bin/env python3
"""Writes blocks.bin and cases.txt: compressed blocks made by numpy alone, from docs/format.md.

It shares nothing with the C++ but the document, so that a mistake in one does not hide in the other:
the layout is built here by reshaping whole arrays, in C++ code by code.

    python3 tests/golden/codec/make_golden.py        # needs numpy; writes beside this file

cases.txt has one block a line:
    kind head_dim k_bits v_bits k_group v_group type input seed offset bytes
Of coupled blocks (kind "coupled") the four numbers are channels, bits, the position of the first
token and the KV head.
The inputs are integer formulas (see `raw_input`), repeated in tests/kvcodec/golden_test.cc.
"""

import math
import pathlib

import numpy as np

TOKENS = 64
INPUTS = ["plain", "constant", "denormal", "outlier", "zeros"]


# --- inputs -----------------------------------------------------------------------------------------


def mix(x):
    """A 32-bit integer hash, elementwise."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def raw_input(kind, typ, seed, side, head_dim):
    """[64, head_dim] 16-bit patterns of fp16 or bf16."""
    token, channel = np.meshgrid(np.arange(TOKENS), np.arange(head_dim), indexing="ij")
    h = mix(np.uint32(seed * 2654435769 % 2**32) ^ (side * 65536 + token * 256 + channel).astype(np.uint32))
    sign = (h >> 31) << 15
    mantissa_bits = 10 if typ == "fp16" else 7
    mantissa = h & ((1 << mantissa_bits) - 1)
    one = 15 if typ == "fp16" else 127  # exponent field of 1.0
    exponent = one - 2 + ((h >> 16) & 3)
    if kind == "constant":
        sign, exponent, mantissa = sign * 0, exponent * 0 + one, mantissa * 0 + 5
    if kind == "denormal":  # below the least normal fp16
        exponent = exponent * 0 if typ == "fp16" else one - 26 + ((h >> 16) & 3)
    if kind == "outlier":  # every 16th channel around 1e4
        exponent = np.where(channel % 16 == 3, one + 13, exponent)
    if kind == "offset":  # every 8th channel around 12, of one sign
        exponent = np.where(channel % 8 == 1, one + 3, exponent)
        sign = np.where(channel % 8 == 1, channel % 16 // 8 << 15, sign)
    if kind == "zeros":
        exponent, mantissa = exponent * 0, mantissa * 0
    return (sign | (exponent << mantissa_bits) | mantissa).astype(np.uint16)


def to_float32(raw, typ):
    if typ == "fp16":
        return raw.view(np.float16).astype(np.float32)
    return (raw.astype(np.uint32) << 16).view(np.float32)


# --- quantizer --------------------------------------------------------------------------------------


def quantize_groups(x, bits):
    """x: [..., group] float32 -> codes [..., group], scale, min as fp16 [...]. Every step is fp32."""
    levels = np.float32(2**bits - 1)
    mn = x.min(axis=-1).astype(np.float16)
    mn[mn == 0] = np.float16(0)  # never -0
    mn32 = mn.astype(np.float32)
    scale = ((x.max(axis=-1) - mn32) / levels).astype(np.float16)
    scale[~(scale > 0)] = np.float16(0)
    scale32 = scale.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale32 > 0, np.float32(1) / scale32, np.float32(0)).astype(np.float32)
    code = np.rint((x - mn32[..., None]) * inverse[..., None])
    return np.clip(code, 0, levels).astype(np.uint32), scale, mn


# --- layout -----------------------------------------------------------------------------------------


def k_axes(codes):
    """[64, d] -> [tile, g, j, r, h, w, f]."""
    d = codes.shape[1]
    a = codes.reshape(4, 2, 8, d // 32, 4, 4, 2)  # tile r g | w j f h
    return a.transpose(0, 2, 4, 1, 6, 3, 5)


def v_axes(codes):
    """[64, d] -> [tile, g, j, r, h, w, f]."""
    d = codes.shape[1]
    a = codes.reshape(4, 2, 4, 2, d // 32, 8, 4)  # tile r j h | w g f
    return a.transpose(0, 5, 2, 1, 3, 4, 6)


def combine(fields, shifts):
    """Sum of fields << shift over the trailing axes; shifts broadcasts to them."""
    axes = tuple(range(fields.ndim - shifts.ndim, fields.ndim))
    return (fields.astype(np.uint64) << shifts.astype(np.uint64)).sum(axis=axes).astype(np.uint32)


def order(words, is_k):
    """[tile, g, j, n] words -> the planes of the region, flat."""
    n = words.shape[3]
    if n == 0:
        return np.zeros(0, np.uint32)
    if is_k:
        return words.transpose(3, 1, 2, 0).ravel()  # n g j tile
    u = math.gcd(n, 4)
    a = words.reshape(u, 4 // u, 8, 4, n // u, u)  # tp tq g j q m
    return a.transpose(0, 4, 2, 3, 1, 5).ravel()  # tp q g j tq m


def even_words(a, bits):
    """Bits 2, 4, 8: [tile, g, j, n]."""
    tile, g, j, r, h, w, f = a.shape
    per_word = 8 // bits
    fields = a.reshape(tile, g, j, 2, 2, w * 4 // per_word, per_word).transpose(0, 1, 2, 5, 3, 4, 6)
    shifts = (
        8 * np.arange(2)[:, None, None] + 16 * np.arange(2)[None, :, None] + bits * np.arange(per_word)
    )
    return combine(fields, shifts)


def eight_fields(a):
    """Two groups of 32 channels side by side: [tile, g, j, r, h, n, p = 4 * s + f]; and the odd group,
    paired over neighbours in g: [tile, g / 2, j, r, h, p], or None."""
    tile, g, j, r, h, w, f = a.shape
    whole = a[..., : w // 2 * 2, :].reshape(tile, g, j, 2, 2, w // 2, 8)
    if w % 2 == 0:
        return whole, None
    last = a[..., -1, :].reshape(tile, g // 2, 2, j, 2, 2, 4)  # tile g2 s j r h f
    return whole, last.transpose(0, 1, 3, 4, 5, 2, 6).reshape(tile, g // 2, j, 2, 2, 8)


def one_bit_words(fields):
    """[..., r, h, p] -> [...]"""
    shifts = 8 * np.arange(2)[:, None, None] + 16 * np.arange(2)[None, :, None] + np.arange(8)
    return combine(fields, shifts)


def three_bit_words(fields):
    """[..., r, h, p] -> three arrays [...]: words 0, 1, 2."""
    half = 16 * np.arange(2)
    c = lambda r, p: fields[..., r, :, p].astype(np.uint64)  # [..., h]
    out = []
    for m in range(3):
        sixth = [c(0, 6), c(1, 6), c(0, 7)][m]
        h16 = c(0, 2 * m) | c(0, 2 * m + 1) << 3 | sixth << 6 | c(1, 2 * m) << 9 | c(1, 2 * m + 1) << 12
        h16 |= (c(1, 7) >> m & 1) << 15
        out.append(combine(h16, half))
    return out


def pack(codes, bits, is_k):
    a = k_axes(codes) if is_k else v_axes(codes)
    if bits in (2, 4, 8):
        return order(even_words(a, bits), is_k)
    whole, odd = eight_fields(a)
    whole = whole.transpose(0, 1, 2, 5, 3, 4, 6)  # tile g j n r h p
    wholes = [one_bit_words(whole)] if bits == 1 else three_bit_words(whole)
    odds = [None] * 3
    if odd is not None:
        odds = [one_bit_words(odd)] if bits == 1 else three_bit_words(odd)
    streams = []
    for words, rest in zip(wholes, odds):
        streams.append(order(words, is_k))
        if rest is not None:
            streams.append(rest.transpose(1, 2, 0).ravel())  # g / 2, j, tile
    return np.concatenate(streams)


def v_scale_order(per_token):
    """[64, groups] -> [groups, 64 positions]."""
    a = per_token.reshape(2, 2, 2, 4, 2, -1)  # mt/2, mt%2, r, j, h
    return a.transpose(5, 3, 0, 2, 1, 4).reshape(per_token.shape[1], TOKENS)


def scalar_block(k, v, k_bits, v_bits, k_group, v_group):
    d = k.shape[1]
    rows = TOKENS // k_group
    kq, ks, km = quantize_groups(k.reshape(rows, k_group, d).transpose(0, 2, 1), k_bits)
    vq, vs, vm = quantize_groups(v.reshape(TOKENS, d // v_group, v_group), v_bits)
    parts = [
        pack(kq.transpose(0, 2, 1).reshape(TOKENS, d), k_bits, True),
        ks,
        km,
        pack(vq.reshape(TOKENS, d), v_bits, False),
        v_scale_order(vs),
        v_scale_order(vm),
    ]
    return b"".join(np.ascontiguousarray(p).tobytes() for p in parts)


def token_scales(unit):
    """[64] float32 -> fp16 scales and what to multiply values with."""
    scale = unit.astype(np.float16)
    scale32 = scale.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale32 > 0, np.float32(1) / scale32, np.float32(0)).astype(np.float32)
    return scale, inverse


def int8_block(k, v):
    codes, scales = [], []
    for x in (k, v):
        scale, inverse = token_scales(np.abs(x).max(axis=1) / np.float32(127))
        codes.append(np.clip(np.rint(x * inverse[:, None]), -127, 127).astype(np.int8))
        scales.append(scale)
    return b"".join(p.tobytes() for p in codes + scales)


def e4m3_codes(y):
    """fp32 -> E4M3 bytes: nearest of the 127 magnitudes, ties to the even code."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    middles = (values[1:] + values[:-1]) / 2
    magnitude = np.abs(y).astype(np.float64)
    low, high = np.searchsorted(middles, magnitude, "left"), np.searchsorted(middles, magnitude, "right")
    nearest = np.where(low % 2 == 0, low, high)  # they differ on a tie alone
    return np.where((y < 0) & (nearest > 0), nearest + 128, nearest).astype(np.uint8)


def fp8_block(k, v):
    codes, scales = [], []
    for x in (k, v):
        scale, inverse = token_scales(np.abs(x).max(axis=1) / np.float32(448))
        codes.append(e4m3_codes(x * inverse[:, None]))
        scales.append(scale)
    return b"".join(p.tobytes() for p in codes + scales)


# Levels as 1/16384, from the document.
LEVELS = {
    "nf4": [-16384, -11408, -8600, -6472, -4660, -3028, -1492, 0]
    + [1304, 2636, 4032, 5536, 7220, 9216, 11848, 16384],
    "nf3": [-16384, -8768, -4046, 0, 3004, 6260, 10208, 16384],
    "lm3": [-35264, -22016, -12384, -4016, 4016, 12384, 22016, 35264],
    "lm2": [-24752, -7420, 7420, 24752],
}
# Whose keys have a zero point per channel, and of which table the levels are.
SHIFTED = {"anf4": "nf4"}


def lut_codes(y, levels):
    """Nearest level by distance, in fp64, which is exact enough to be exact; of two, the lower."""
    distance = np.abs(y.astype(np.float64)[..., None] - np.array(levels) / 16384)
    return distance.argmin(axis=-1).astype(np.uint32)


def rms(x):
    """Of each row, every step fp32: eight running sums by channel % 8, then in pairs."""
    squares = (x * x).reshape(TOKENS, -1, 8)
    s = np.zeros((TOKENS, 8), np.float32)
    for i in range(squares.shape[1]):
        s = s + squares[:, i]
    four = s[:, :4] + s[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return np.sqrt((two[:, 0] + two[:, 1]) / np.float32(x.shape[1]))


def key_zeros(k):
    zeros = ((k.min(axis=0) + k.max(axis=0)) * np.float32(0.5)).astype(np.float16)
    zeros[zeros == 0] = np.float16(0)  # never -0
    return zeros


def lut_block(k, v, name):
    levels = LEVELS[SHIFTED.get(name, name)]
    bits = len(levels).bit_length() - 1
    parts, padding = [], np.zeros(-2 * k.shape[1] % 128, np.uint8)
    if name in SHIFTED:
        zeros = key_zeros(k)
        k = k - zeros.astype(np.float32)
    for x, is_k in ((k, True), (v, False)):
        scale, inverse = token_scales(rms(x) if name.startswith("lm") else np.abs(x).max(axis=1))
        parts.append(pack(lut_codes(x * inverse[:, None], levels), bits, is_k))
        # K scales: [tile, r, g] -> [g, r, tile]
        of_k = scale.reshape(4, 2, 8).transpose(2, 1, 0)
        parts.append(of_k if is_k else v_scale_order(scale[:, None]))
        if is_k and name in SHIFTED:
            parts += [zeros, padding]
    return b"".join(np.ascontiguousarray(p).tobytes() for p in parts)


# --- coupled blocks: the nearest centroid ------------------------------------------------------------


def codebook(side, kv_head, groups, channels, count):
    """[groups, count, channels] float32, made up. The last three are the first three again: ties."""
    group, code, channel = np.meshgrid(np.arange(groups), np.arange(count), np.arange(channels), indexing="ij")
    code = code % (count - 3)
    index = (((kv_head * 2 + side) * groups + group) * count + code) * channels + channel
    h = mix((index + 12345).astype(np.uint32))
    raw = ((h >> 31) << 15) | ((13 + ((h >> 16) & 3)) << 10) | (h & 1023)
    return raw.astype(np.uint16).view(np.float16).astype(np.float32)


def rotation(token, head_dim):
    """cos, sin of one token: of its block's first token and of itself in the block, one after the other."""
    frequency = (np.float32(1) / (np.arange(head_dim // 2) + 1).astype(np.float32)).astype(np.float64)
    first, rest = token
    (c0, s0), (c1, s1) = [
        (np.cos(p * frequency).astype(np.float32), np.sin(p * frequency).astype(np.float32)) for p in (first, rest)
    ]
    return c0 * c1 - s0 * s1, s0 * c1 + c0 * s1


def before_rope(k, position):
    half = k.shape[1] // 2
    out = np.empty_like(k)
    for token in range(TOKENS):
        c, s = rotation((position, token), k.shape[1])
        low, high = k[token, :half], k[token, half:]
        out[token, :half] = low * c + high * s
        out[token, half:] = high * c - low * s
    return out


def nearest(x, book):
    """[64, groups, channels] and [groups, count, channels] -> [64, groups]; every step is fp32."""
    distance = np.zeros((x.shape[0], book.shape[0], book.shape[1]), np.float32)
    for i in range(x.shape[2]):
        step = x[:, :, None, i] - book[None, :, :, i]
        distance = distance + step * step
    return distance.argmin(axis=2)  # of two the lower


def coupled_block(k, v, channels, bits, position, kv_head):
    rows = []
    for side, x in enumerate((before_rope(k, position), v)):
        groups = x.shape[1] // channels
        codes = nearest(x.reshape(TOKENS, groups, channels), codebook(side, kv_head, groups, channels, 2**bits))
        one_by_one = (codes[:, :, None] >> np.arange(bits) & 1).reshape(TOKENS, -1)
        rows.append(np.packbits(one_by_one.astype(np.uint8), axis=1, bitorder="little"))
    return b"".join(r.tobytes() for r in rows)


# --- cases ------------------------------------------------------------------------------------------


def cases():
    bits = [1, 2, 3, 4, 8]
    for head_dim, v_groups in [(64, [32, 64]), (96, [32]), (128, [32, 64, 128])]:
        for i, k_bits in enumerate(bits):
            for k_group in (32, 64):
                for n, v_group in enumerate(v_groups):
                    v_bits = bits[(i + n + k_group // 64) % 5]
                    yield "scalar", head_dim, k_bits, v_bits, k_group, v_group
    for i, k_bits in enumerate(bits):
        yield "scalar", 256, k_bits, bits[4 - i], 64, 128
        yield "scalar", 256, bits[4 - i], k_bits, 32, (32, 64)[i % 2]
    for kind in ("int8", "raw16"):
        yield kind, 64, 0, 0, 0, 0
    yield "int8", 96, 0, 0, 0, 0


def all_cases():
    """Each shape with one ordinary input, and every bit width with every awkward one."""
    for n, case in enumerate(cases()):
        yield case + (("fp16", "bf16")[n % 2], ("plain", "outlier")[n // 2 % 2])
    for i, k_bits in enumerate([1, 2, 3, 4, 8]):
        for n, kind in enumerate(INPUTS):
            v_bits = [1, 2, 3, 4, 8][(i + n) % 5]
            for typ in ("fp16", "bf16"):
                yield "scalar", 64, k_bits, v_bits, (64, 32)[n % 2], (64, 32)[i % 2], typ, kind
    for kind in INPUTS:
        for typ in ("fp16", "bf16"):
            yield "int8", 64, 0, 0, 0, 0, typ, kind
    # New kinds stand at the end: the blocks before them keep their seeds.
    for head_dim in (64, 96, 128, 256):
        yield "fp8", head_dim, 0, 0, 0, 0, ("fp16", "bf16")[head_dim // 64 % 2], "plain"
    for kind in INPUTS:
        for typ in ("fp16", "bf16"):
            yield "fp8", 64, 0, 0, 0, 0, typ, kind
    for table in LEVELS:
        for head_dim in (64, 96, 128, 256):
            yield table, head_dim, 0, 0, 0, 0, ("fp16", "bf16")[head_dim // 64 % 2], "plain"
        for kind in INPUTS:
            for typ in ("fp16", "bf16"):
                yield table, 64, 0, 0, 0, 0, typ, kind
    for n, (channels, bits) in enumerate([(2, 8), (4, 8), (8, 8), (8, 10), (2, 4)]):
        for head_dim in (64, 96, 128, 256):
            yield "coupled", head_dim, channels, bits, 4 + 64 * n, n % 2, ("fp16", "bf16")[n % 2], "plain"
        for kind in INPUTS:
            yield "coupled", 64, channels, bits, 131000, 1, ("bf16", "fp16")[n % 2], kind
    for table in SHIFTED:
        for head_dim in (64, 96, 128, 256):
            for kind in ("plain", "offset"):
                yield table, head_dim, 0, 0, 0, 0, ("fp16", "bf16")[head_dim // 64 % 2], kind
        for kind in INPUTS + ["offset"]:
            for typ in ("fp16", "bf16"):
                yield table, 64, 0, 0, 0, 0, typ, kind


def main():
    here = pathlib.Path(__file__).parent
    blob, lines = b"", []
    for seed, case in enumerate(all_cases()):
        kind, head_dim, k_bits, v_bits, k_group, v_group, typ, source = case
        raw = [raw_input(source, typ, seed, side, head_dim) for side in (0, 1)]
        k, v = (to_float32(x, typ) for x in raw)
        if kind == "scalar":
            block = scalar_block(k, v, k_bits, v_bits, k_group, v_group)
        elif kind == "int8":
            block = int8_block(k, v)
        elif kind == "fp8":
            block = fp8_block(k, v)
        elif kind in LEVELS or kind in SHIFTED:
            block = lut_block(k, v, kind)
        elif kind == "coupled":
            block = coupled_block(k, v, k_bits, v_bits, k_group, v_group)
        else:
            block = raw[0].tobytes() + raw[1].tobytes()
        lines.append(
            f"{kind} {head_dim} {k_bits} {v_bits} {k_group} {v_group} {typ} {source} {seed} "
            f"{len(blob)} {len(block)}"
        )
        blob += block
    (here / "blocks.bin").write_bytes(blob)
    (here / "cases.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} blocks, {len(blob)} bytes")


if __name__ == "__main__":
    main()
