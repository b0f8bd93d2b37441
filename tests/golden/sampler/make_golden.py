#!/usr/bin/env python3
"""Writes cases.json beside it: tokens that model/sampler.h must draw, from a plain fp64 implementation.

    pip install numpy
    make_golden.py

Everything is computed the slow way (full sort, Python integers for Philox4x32-10), from the description in
model/sampler.h and the paper of Salmon et al. (SC 2011). Draws closer than 1e-5 to a border between two tokens
are left out: there fp32 may round to the other side.
"""

import json
import pathlib

import numpy as np

MASK = 0xFFFFFFFF


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def uniform(seed, position):
    bits = philox([position, 0, 0, 0], [seed & MASK, seed >> 32])
    return ((bits[0] << 32 | bits[1]) >> 11) / 2.0**53


def sample(logits, p, history, position):
    """The token, or None for a draw too close to call."""
    x = np.array(logits, dtype=np.float32).astype(np.float64)
    for token in set(history):
        x[token] = x[token] * p["repetition_penalty"] if x[token] < 0 else x[token] / p["repetition_penalty"]
    if p["temperature"] == 0:
        return int(np.argmax(x))
    x = x / p["temperature"]
    weights = np.exp(x - x.max())
    weights[weights < p["min_p"]] = 0
    order = np.lexsort((np.arange(len(x)), -weights))
    if p["top_k"]:
        weights[order[p["top_k"]:]] = 0
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    if p["top_p"] < 1:
        if np.min(np.abs(before - p["top_p"])) < 1e-5:
            return None
        probabilities[order[before >= p["top_p"]]] = 0
    probabilities /= probabilities.sum()
    borders = np.cumsum(probabilities)
    u = uniform(p["seed"], position)
    if np.min(np.abs(borders[:-1] - u)) < 1e-5:
        return None
    return int(np.searchsorted(borders, u, side="right"))


def main():
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    rng = np.random.default_rng(3)
    cases = []
    while len(cases) < 400:
        size = int(rng.integers(2, 40))
        logits = [round(float(v), 2) for v in rng.normal(0, 3, size)]
        p = {"temperature": float(rng.choice([0, 0.5, 1.0, 2.0])), "top_k": int(rng.choice([0, 1, 5, 20])),
             "top_p": float(rng.choice([0.25, 0.875, 1.0])), "min_p": float(rng.choice([0, 0.0625])),
             "repetition_penalty": float(rng.choice([1.0, 1.25, 0.5])), "seed": int(rng.integers(0, 2**63))}
        history = [int(v) for v in rng.integers(0, size, int(rng.integers(0, 6)))]
        position = int(rng.integers(0, 5000))
        token = sample(logits, p, history, position)
        if token is not None:
            cases.append({"logits": logits, "params": p, "history": history, "position": position, "token": token})
    body = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (pathlib.Path(__file__).parent / "cases.json").write_text(f"[\n{body}\n]\n")


if __name__ == "__main__":
    main()
