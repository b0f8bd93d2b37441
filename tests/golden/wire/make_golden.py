#!/usr/bin/env python3
"""Writes the golden bytes of data-plane headers and the seeds of the chunk header fuzzer.

Independent of the C++ code: standard library only, CRC32C and SipHash-2-4 from their papers, layouts from docs/protocol.md.
Run it after a change of the wire format: tests/golden/wire/make_golden.py
"""
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = HERE.parent.parent / "fuzz" / "corpus" / "chunk_header"
KEY = bytes(range(16))  # also the key of tests/fuzz/chunk_header_fuzz.cc
TRANSFER = bytes(range(0xA0, 0xB0))
INCARNATION = 0x1122334455667788
M64 = (1 << 64) - 1


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def rotl(x, n):
    return ((x << n) | (x >> (64 - n))) & M64


def sip_round(v0, v1, v2, v3):
    v0 = (v0 + v1) & M64
    v1 = rotl(v1, 13) ^ v0
    v0 = rotl(v0, 32)
    v2 = (v2 + v3) & M64
    v3 = rotl(v3, 16) ^ v2
    v0 = (v0 + v3) & M64
    v3 = rotl(v3, 21) ^ v0
    v2 = (v2 + v1) & M64
    v1 = rotl(v1, 17) ^ v2
    v2 = rotl(v2, 32)
    return v0, v1, v2, v3


def siphash24(data, key):
    k0, k1 = struct.unpack("<QQ", key)
    v = (k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573)
    tail = len(data) // 8 * 8
    last = data[tail:].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for i in range(0, tail + 8, 8):
        m = struct.unpack("<Q", data[i:i + 8] if i < tail else last)[0]
        v = sip_round(*sip_round(v[0], v[1], v[2], v[3] ^ m))
        v = (v[0] ^ m, v[1], v[2], v[3])
    v = (v[0], v[1], v[2] ^ 0xFF, v[3])
    for _ in range(4):
        v = sip_round(*v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def seal(header, crc_at):
    """The crc over what stands before it, then the tag over everything, both with the tag zero."""
    header[crc_at:crc_at + 4] = struct.pack("<I", crc32c(header[:crc_at]))
    header[32:40] = struct.pack("<Q", siphash24(bytes(header), KEY))
    return bytes(header)


def chunk(**fields):
    f = dict(magic=b"KVF1", major=1, minor=0, length=128, incarnation=INCARNATION, epoch=3, flags=0, seq=17, slot=2,
             layer=(4, 6), head=(0, 3), token=(64, 448), head_dim=64, kind=1, check_kind=1, zero=b"\0\0\0",
             codec_hash=0x0123456789ABCDEF, check=0xDEADBEEF, payload=1234567, reserved=b"\0" * 24)
    f.update(fields)
    header = bytearray(128)
    struct.pack_into("<4sBBH16sQQII", header, 0, f["magic"], f["major"], f["minor"], f["length"], TRANSFER,
                     f["incarnation"], 0, f["epoch"], f["flags"])
    struct.pack_into("<IIHHHHIIHHB3s", header, 48, f["seq"], f["slot"], *f["layer"], *f["head"], *f["token"],
                     f["head_dim"], f["kind"], f["check_kind"], f["zero"])
    struct.pack_into("<QQII24s", header, 80, f["codec_hash"], f["check"], f["payload"], 0, f["reserved"])
    return seal(header, 100)


def control(kind, seq=0, chunks=0, first_token=-1, payload=0, cause=0):
    header = bytearray(96)
    struct.pack_into("<4sBBH16sQQII", header, 0, b"KVFC", 1, 0, 96, TRANSFER, INCARNATION, 0, 3, 0)
    struct.pack_into("<IB3sIiQI", header, 48, seq, kind, b"\0\0\0", chunks, first_token, payload, cause)
    return seal(header, 92)


def main():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    assert siphash24(bytes(range(15)), KEY) == 0xA129CA6149BE45E5  # the SipHash paper's, appendix A
    golden = {
        "chunk_blocks": chunk(),
        "chunk_window": chunk(kind=3, token=(8000, 127), seq=0xFFFFFFFF, payload=0),
        "control_ack": control(2, seq=17),
        "control_nack": control(3, seq=18, cause=15),
        "control_commit": control(4, chunks=99, first_token=4711, payload=0x123456789A),
        "control_adopted": control(5),
        "control_abort": control(7, cause=1),
        "control_abort_ack": control(8),
    }
    for name, data in golden.items():
        (HERE / f"{name}.bin").write_bytes(data)

    good = golden["chunk_blocks"]
    flipped = bytearray(good)
    flipped[70] ^= 1
    wrong_tag = bytearray(good)
    wrong_tag[39] ^= 0x80
    seeds = {
        "good": good,
        "window": golden["chunk_window"],
        "sinks": chunk(kind=2, token=(0, 32)),
        "empty": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "bit_flipped": bytes(flipped),
        "wrong_tag": bytes(wrong_tag),
        "wrong_magic": chunk(magic=b"KVF2"),
        "major_2": chunk(major=2),
        "minor_9": chunk(minor=9),
        "length_96": chunk(length=96),
        "kind_0": chunk(kind=0),
        "kind_4": chunk(kind=4),
        "check_kind_2": chunk(check_kind=2),
        "flags": chunk(flags=1),
        "zero_not_zero": chunk(zero=b"\0\0\1"),
        "reserved_not_zero": chunk(reserved=b"\0" * 23 + b"\1"),
        "ranges_that_wrap": chunk(layer=(65535, 65535), head=(65535, 65535), token=(0xFFFFFFFF, 0xFFFFFFFF)),
    }
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()
