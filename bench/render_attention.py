#!/usr/bin/env python3
"""Draws docs/gpu_attention.svg from bench/results/gpu_attention.json: every number there comes from that file.

  bench/render_attention.py
"""

import json
import math
import pathlib
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLOURS = {
    "fp16": "#444444",
    "K4V4": "#1d4ed8",
    "K4V2": "#0f766e",
    "K2V2": "#c2410c",
    "NF4": "#7e22ce",
    "ANF4": "#db2777",
    "NF3": "#b91c1c",
    "LM2": "#f59e0b",
    "CQ-2C4B": "#4d7c0f",
    "CQ-4C8B": "#86704a",
    "CQ-2C8B": "#14b8a6",
    "CQ-8C8B": "#6366f1",
    "CQ-8C10B": "#64748b",
    "FP8": "#a16207",
    "INT8": "#0891b2",
}
WIDTH, HEIGHT, TOP, BOTTOM = 1310, 460, 64, 60


def tokens(shape):
    """'8 x 32k' -> (8, 32768)."""
    batch, context = shape.split(" x ")
    return int(batch), int(context[:-1]) * 1024


def read(report):
    """{(codec, shape): details}, the best fp16 of each shape with it."""
    rows = {}
    for row in report["rows"]:
        if row["what"].endswith("launched early") or ", launched early," in row["what"]:
            continue  # a second measurement of the same shape
        if row["what"].startswith("kvtuner profile"):
            continue  # not one codec but a sum over layers of several
        codec, shape = row["what"].split(", ")[:2]
        entry = rows.setdefault((codec, shape), {"us": row["details"]["us"]["median"]})
        if row["baseline"].startswith("best fp16"):
            entry["fp16_us"] = entry["us"] * row["ratio"]
        else:
            entry["fraction"] = row["ratio"]
    return rows


def text(x, y, what, **attributes):
    extra = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(what)}</text>'


def line(x1, y1, x2, y2, colour="#e4e4e4"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def times(rows, left, right):
    """Time of a call against context, one sequence, logarithmic."""
    curves = {}
    for (codec, shape), row in rows.items():
        batch, context = tokens(shape)
        if batch != 1:
            continue
        curves.setdefault(codec, {})[context] = row["us"]
        curves.setdefault("fp16", {}).setdefault(context, row["fp16_us"])
    contexts = sorted(curves["fp16"])
    low, high = 5, 10 ** math.ceil(math.log10(max(curves["fp16"].values())))
    x = lambda c: left + (right - left) * math.log2(c / contexts[0]) / math.log2(contexts[-1] / contexts[0])
    y = lambda us: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * math.log(us / low) / math.log(high / low)
    out = [text(left, TOP - 14, "microseconds a call, 1 sequence", font_weight="bold")]
    for context in contexts:
        out += [line(x(context), TOP, x(context), HEIGHT - BOTTOM)]
        out += [text(x(context), HEIGHT - BOTTOM + 18, f"{context // 1024}k", text_anchor="middle")]
    for us in (5, 10, 20, 50, 100, 200, 500, 1000):
        if low <= us <= high:
            out += [line(left, y(us), right, y(us)), text(left - 6, y(us) + 4, str(us), text_anchor="end")]
    for codec, colour in COLOURS.items():
        points = sorted(curves.get(codec, {}).items())  # not every run has every codec
        path = " ".join(f"{x(c):.1f},{y(us):.1f}" for c, us in points)
        out += [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
        for c, us in points:
            out += [f'<circle cx="{x(c):.1f}" cy="{y(us):.1f}" r="3.5" fill="{colour}"><title>{codec}, {c // 1024}k: {us:.1f} us</title></circle>']
    return out


def fractions(rows, left, right):
    """Compressed bytes per second over those of the read-only stream, per shape."""
    shapes = sorted({shape for _, shape in rows}, key=lambda s: (tokens(s)[0] * tokens(s)[1], tokens(s)))
    codecs = [codec for codec in COLOURS if any(codec == drawn for drawn, _ in rows)]
    y = lambda f: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * f
    out = [text(left, TOP - 14, "compressed bytes per second, of the read-only ceiling", font_weight="bold")]
    for f in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        out += [line(left, y(f), right, y(f)), text(left - 6, y(f) + 4, f"{f:.1f}", text_anchor="end")]
    step = (right - left) / len(shapes)
    bar = step / (len(codecs) + 1.2)
    for i, shape in enumerate(shapes):
        out += [text(left + step * (i + 0.5), HEIGHT - BOTTOM + 18, shape, text_anchor="middle", font_size=11)]
        for j, codec in enumerate(codecs):
            f = rows.get((codec, shape), {}).get("fraction")
            if f is None:
                continue
            at = left + step * i + bar * (j + 0.6)
            out += [
                f'<rect x="{at:.1f}" y="{y(f):.1f}" width="{bar * 0.9:.1f}" height="{y(0) - y(f):.1f}" fill="{COLOURS[codec]}">'
                f"<title>{codec}, {shape}: {f:.3f}</title></rect>"
            ]
    return out


def main():
    report = json.loads((ROOT / "bench" / "results" / "gpu_attention.json").read_text(encoding="utf-8"))
    rows = read(report)
    gpu = report["rows"][0]["details"]["gpu"]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(60, 24, f"Decode attention, 32 query heads on 8 KV heads, head_dim 128: {gpu}", font_size=15, font_weight="bold"),
    ]
    drawn = {codec for codec, _ in rows} | {"fp16"}
    if drawn - COLOURS.keys():
        raise SystemExit(f"no colour for {sorted(drawn - COLOURS.keys())}")
    for i, (codec, colour) in enumerate((codec, colour) for codec, colour in COLOURS.items() if codec in drawn):
        name = "best fp16 of LibTorch" if codec == "fp16" else codec
        at = 60 if i == 0 else 140 + 78 * i
        out += [f'<rect x="{at}" y="{HEIGHT - 22}" width="12" height="12" fill="{colour}"/>', text(at + 18, HEIGHT - 12, name)]
    out += times(rows, 60, 420) + fractions(rows, 500, WIDTH - 20) + ["</svg>"]
    (ROOT / "docs" / "gpu_attention.svg").write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
