#!/usr/bin/env python3
"""Writes docs/quality.md and its plots from bench/results/quality.json and those of these that are beside it, of the same bench:
quality_coupled*.json and quality_profiles.json, quality_more.json (codecs with files of their own), quality_registered.json (every registered codec in one run on CPUs), quality_python.json (another domain), quality_long.json (longer prompts), quality_report.json (one factor at a time), quality_layers.json (of that, one layer or head at a time, where it is a run of its own) and
quality_tables.json (codecs with a scale per token): every number there comes from these files.

  bench/render_quality.py [RESULT.json [FOLDER]]
"""

import json
import math
import pathlib
import re
import sys
from xml.sax.saxutils import escape

from quality_format import Axis, about, down, interval, passages_of, up, up3
from render_information import information

ROOT = pathlib.Path(__file__).resolve().parents[1]

HEAD = """# Quality

What each codec does to a model's answers. Written by `bench/render_quality.py` from `bench/results/quality*.json`, which
`scripts/gpu_quality.sh` makes on a GPU host, `bench/run.sh quality` the first of them on CPUs, and the command at its table
"Every registered codec in one run". Numbers are rounded against us.

## How it is measured

A passage is {passage} tokens of the text. Its first {prompt} are prefilled with exact attention; their K and V are laid out in chunks,
encoded, checked and adopted as between two nodes; the {decode} that follow go one by one through decode attention on the compressed
cache, and windows are flushed as on a decode worker. The first of them follows from the exact prefill and is not scored.

- **KL**: KL(exact ‖ codec) of the next token over the whole vocabulary, in nats. *exact* is the model in fp32 without any cache format.
- **ratio**: perplexity over that of the `fp16` codec, same positions, same code; its row is the noise of the kernels.
- Brackets are 95 % intervals of a block bootstrap over stretches of {stretch} positions, seed {seed}.
- **bits** per K or V value after the last token, with scales, sinks and window: counted in the buffers, and equal to the formula.
- **top-1**: the likeliest token is the exact model's; **sure**: the same where the exact model leads by more than 0.1 nat.
- **top-5**: share of the exact model's five likeliest tokens that are among the codec's five.
- **greedy**: tokens until a greedy answer differs from the exact model's, median over passages, of {greedy}.
- **own answers**: mean KL along the codec's own greedy answers, at the tokens that it has chosen itself: teacher forcing leads it back
  to the text after every error, this does not.
- **attention**: |o - o'| / |o| of the attention output at the exact run's queries, mean over layers, first {probe} decode tokens.

A lossy codec that changes no bit of the logits against an exact cache with the same window fails the run. An instruct model's
perplexity of raw text is high, and a small model loses more at 2 bits than a large one: compare rows, not papers.
"""

# Statements of the literature, as pairs of rows: the first is to have the lower divergence.
CHECKS = [
    ("keys need their bits more than values: K4V2 beats K2V4", "kivi-k4v2", "kivi-2:v_bits=4"),
    ("the same in groups of 64", "kivi-2-g64:k_bits=4", "kivi-2-g64:v_bits=4"),
    ("4 bits beat 2", "kivi-4", "kivi-2"),
    ("1 sink beats none", "kivi-2:sinks=1", "kivi-2:sinks=0"),
    ("4 sinks beat 1", "kivi-2", "kivi-2:sinks=1"),
    ("16 sinks beat 4", "kivi-2:sinks=16", "kivi-2"),
    ("groups of 32 beat 64, 4 bits", "kivi-4", "kivi-4:k_group=64,v_group=64"),
    ("groups of 32 beat 64, 2 bits", "kivi-2", "kivi-2:k_group=64,v_group=64"),
    ("64 recent tokens beat none, 2 bits", "kivi-2:recent=64", "kivi-2:recent=0"),
    ("128 recent tokens beat 64, 2 bits", "kivi-2", "kivi-2:recent=64"),
    ("64 recent tokens beat none, 4 bits", "kivi-4:recent=64", "kivi-4:recent=0"),
    ("128 recent tokens beat 64, 4 bits", "kivi-4", "kivi-4:recent=64"),
    ("coupled channels at 2 bits beat KIVI at 3, the same window", "cq-4c8b:recent=128", "kivi-2"),
    ("coupled channels at 2 bits beat KIVI at 3, a window of 32", "cq-4c8b", "kivi-2"),
    ("4 channels coupled beat 8, 2 bits against 1", "cq-4c8b", "cq-8c8b"),
    ("more centroids are better: 10 bits against 8", "cq-8c10b", "cq-8c8b"),
    ("zero points of keys help NF4", "anf4", "nqkv-nf4"),
    ("bits by layer beat the same for all, size of K4V4", "kvtuner:c4", "kivi-4-g64"),
    ("bits by layer beat the same for all, size of K4V2", "kvtuner:c3", "kivi-k4v2-g64"),
]


def pareto(points):
    """Those that no other point beats in both: fewer bits and a smaller value. points: (bits, value, name)."""
    front, best = [], math.inf
    for point in sorted(points):
        if point[1] < best:
            front.append(point)
            best = point[1]
    return front


def place_labels(boxes):
    """Moves labels down until none covers another. boxes: [x, y, width], in place."""
    placed = []
    for box in sorted(boxes, key=lambda b: b[1]):
        while any(abs(box[1] - p[1]) < 11 and box[0] < p[0] + p[2] and p[0] < box[0] + box[2] for p in placed):
            box[1] += 2
        placed.append(box)


def plot(path, title, y_title, points):
    """A scatter plot with the Pareto front. points: (bits, value, name), values > 0, logarithmic axes."""
    width, height, left, right, top, bottom = 860, 520, 80, 30, 44, 56
    values = [p[1] for p in points]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 1e-9)
    x, y = Axis(2, 20, left, width - right), Axis(low, high, height - bottom, top)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="24" font-size="15" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    for bits in (2, 3, 4, 5, 6, 8, 10, 12, 16):
        at = x.at(bits)
        out.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{height - bottom}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#444444">{bits}</text>')
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = y.at(10.0**exponent)
        out.append(f'<line x1="{left}" y1="{at:.1f}" x2="{width - right}" y2="{at:.1f}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#444444">{10.0**exponent:g}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 14}" text-anchor="middle" fill="#222222">bits per value, everything counted</text>')
    out.append(f'<text transform="translate(20 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle" fill="#222222">{escape(y_title)}</text>')
    front = pareto(points)
    steps = []
    for i, point in enumerate(front):
        if i > 0:
            steps.append(f"{x.at(point[0]):.1f},{y.at(front[i - 1][1]):.1f}")
        steps.append(f"{x.at(point[0]):.1f},{y.at(point[1]):.1f}")
    out.append(f'<polyline points="{" ".join(steps)}" fill="none" stroke="#c2410c" stroke-width="1.5" stroke-dasharray="5 3"/>')
    boxes = [[x.at(b) + 8, y.at(v) + 4, 5.6 * len(n), n] for b, v, n in points]
    for box in boxes:  # beside the point, or before it where the right edge is near
        if box[0] + box[2] > width - 4:
            box[0] -= box[2] + 18
    place_labels(boxes)
    names = {p[2] for p in front}
    for bits, value, name in points:
        colour = "#c2410c" if name in names else "#1d4ed8"
        out.append(f'<circle cx="{x.at(bits):.1f}" cy="{y.at(value):.1f}" r="4" fill="{colour}"><title>{escape(name)}: {bits:.2f} bits, {value:.4g}</title></circle>')
    for at_x, at_y, _, name in boxes:
        out.append(f'<text x="{at_x:.1f}" y="{at_y:.1f}" font-size="10" fill="#222222">{escape(name)}</text>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n", encoding="utf-8")


# Of a table's columns: title, and the cell of a row, or None where its run has not measured it.
COLUMNS = [
    ("codec", lambda r: f"`{r['codec']}`"),
    ("bits", lambda r: up(r["resident_bits_per_value"], 2)),
    ("wire B/token", lambda r: up(r["wire_bytes_per_token"], 0)),
    ("resident B/token", lambda r: up(r["resident_bytes_per_token"], 0)),
    ("perplexity", lambda r: up(r["perplexity"]["value"], 3)),
    ("ratio", lambda r: interval(r["perplexity_ratio"], lambda v: up(v, 4))),
    ("KL, mean", lambda r: interval(r["kl"], up3)),
    ("KL, p99", lambda r: up3(r["kl_p99"])),
    ("KL, max", lambda r: up3(r["kl_max"])),
    ("top-1 %", lambda r: down(100 * r["top1_agreement"], 2)),
    ("sure %", lambda r: down(100 * r["top1_agreement_where_sure"], 2)),
    ("top-5 %", lambda r: down(100 * r["top5_overlap"], 2) if "top5_overlap" in r else None),
    ("greedy", lambda r: f"{r['greedy_prefix_median']:.0f}" if r["greedy_tokens"] else None),
    ("own answers", lambda r: up3(r["trajectory_kl"]["value"]) if r["greedy_tokens"] and "trajectory_kl" in r else None),
    ("attention", lambda r: up(r["attention_error_mean"], 4) if r["attention_error"] else None),
]


def table(report):
    shown = [(title, cell) for title, cell in COLUMNS if cell(report["codecs"][0]) is not None]
    text = "| " + " | ".join(title for title, _ in shown) + " |\n" + "|---" * len(shown) + "|\n"
    for row in report["codecs"]:
        text += "| " + " | ".join(cell(row) for _, cell in shown) + " |\n"
    missing = report.get("not_on_this_device", [])
    if missing:
        text += "\nNot on this device: " + ", ".join(f"`{row['codec']}`" for row in missing) + ".\n"
    return text


def checks(rows):
    text = ""
    for what, better, worse in CHECKS:
        if better not in rows or worse not in rows:
            continue
        a, b = rows[better]["kl"], rows[worse]["kl"]
        if a["high"] < b["low"]:
            verdict = "yes"
        elif b["high"] < a["low"]:
            verdict = "no"
        else:
            verdict = "yes, within the intervals" if a["value"] < b["value"] else "no, within the intervals"
        text += f"| {what} | `{better}` {up3(a['value'])} | `{worse}` {up3(b['value'])} | {verdict} |\n"
    if not text:
        return ""
    return (
        "\n## Against the literature\n\nMean KL of two rows that differ in one thing.\n\n"
        "| statement | first | second | holds |\n|---|---|---|---|\n" + text
    )


def passkeys(report):
    if "passkeys" not in report:
        return ""
    keys = report["passkeys"]
    text = "\n## Passkeys\n\nA five-digit key hidden at so many percent of the prompt, "
    text += "asked for at its end. A codec is asked for those that the exact model finds.\n\n"
    text += "| keys found at | " + " | ".join(f"{depth} %" for depth in keys["depths_percent"]) + " |\n"
    text += "|---" * (len(keys["depths_percent"]) + 1) + "|\n"
    text += "| exact | " + " | ".join(f"{n} of {keys['per_depth']}" for n in keys["exact_found"]) + " |\n"
    for row in keys["codecs"]:
        counts = zip(row["found"], keys["exact_found"])
        text += f"| `{row['codec']}` | " + " | ".join(f"{n} of {asked}" for n, asked in counts) + " |\n"
    return text


def layers(report):
    lossy = [row for row in report["codecs"] if row["lossy"] and ":" not in row["codec"] and row["attention_error"]]
    if not lossy:
        return ""
    text = "\n## Attention error by layer\n\n| layer | " + " | ".join(f"`{row['codec']}`" for row in lossy) + " |\n"
    text += "|---" * (len(lossy) + 1) + "|\n"
    for layer in range(report["setup"]["layers"]):
        text += f"| {layer} | " + " | ".join(up(row["attention_error"][layer], 4) for row in lossy) + " |\n"
    return text


def per_token(report):
    """A run of its own, of codecs with one scale per token and head."""
    return (
        "\n## One scale per token\n\n" + about(report) + " The same passages and positions.\n\n"
        + table(report)
        + "\nKeys have a few channels that are many times as large as the others (KIVI, arXiv 2402.02750). The largest magnitude as scale "
        "(`nqkv-nf4`, `nf3`) leaves the others few levels; the root mean square (`lm3`, `lm2`), best for a normal distribution, cuts "
        "the large channels off, which is far worse.\n"
    )


def other(title, report):
    """The same bench over another text or other sizes."""
    exact = report["exact_perplexity"]
    return (
        f"\n## {title}\n\n{about(report)}\n\n{passages_of(report)}: {report['codecs'][0]['positions']:,} positions. "
        f"Perplexity of the exact model: {interval(exact, lambda v: up(v, 3))}.\n\n" + table(report)
    )


def how_long(report):
    most = max(report["codecs"], key=lambda row: row["seconds"])
    return (
        f"\n{len(report['codecs'])} codecs on {report['machine']['cores']} cores: {math.ceil(report['seconds'] / 60)} minutes in all, "
        f"the exact model's part in it; `{most['codec']}` took longest, {math.ceil(most['seconds'])} seconds.\n"
    )


def render(report, beside, folder):
    """beside: the other reports by what their files are called after quality_."""
    setup = report["setup"]
    rows = {row["codec"]: row for row in report["codecs"]}
    for name in (*BESIDE, "tables"):  # the same passages and positions
        for row in beside.get(name, {"codecs": []})["codecs"]:
            rows.setdefault(row["codec"], row)
    any_row = report["codecs"][0]
    text = HEAD.format(
        passage=setup["prompt_tokens"] + setup["decode_tokens"],
        prompt=setup["prompt_tokens"],
        decode=setup["decode_tokens"],
        stretch=setup["stretch_positions"],
        seed=setup["seed"],
        greedy=any_row["greedy_tokens"],
        probe=setup["probe_tokens"],
    )
    exact = report["exact_perplexity"]
    text += (
        f"\n## {setup['model']}\n\n{about(report)}\n\n"
        f"{setup['passages']} passages, evenly spread over `{setup['text']}` (CRC32C {setup['text_crc32c']}, {setup['text_tokens']:,} tokens): "
        f"{any_row['positions']:,} positions, measured in {math.ceil(report['seconds'] / 60)} minutes. "
        f"Perplexity of the exact model: {interval(exact, lambda v: up(v, 3))}.\n\n"
    )
    text += table(report)
    kl = [(row["resident_bits_per_value"], row["kl"]["value"], row["codec"]) for row in report["codecs"]]
    ratio = [(row["resident_bits_per_value"], row["perplexity_ratio"]["value"] - 1, row["codec"]) for row in report["codecs"]]
    plot(folder / "quality_kl.svg", f"{setup['model']}: divergence from the exact model", "mean KL, nats", kl)
    least = 1e-5
    shown = [(bits, max(value, least), name) for bits, value, name in ratio]
    plot(folder / "quality_perplexity.svg", f"{setup['model']}: loss of perplexity", "perplexity ratio - 1", shown)
    text += "\n![Mean KL against bits per value](quality_kl.svg)\n\n![Perplexity ratio against bits per value](quality_perplexity.svg)\n"
    text += "\nThe dashed line is the Pareto front: no other row has fewer bits and a smaller loss."
    lowest = [point[2] for point in ratio if point[1] <= least]
    if lowest:
        text += " Rows that lose less than a part in 100,000, or gain by chance, stand on the bottom line of the second plot: "
        text += ", ".join(f"`{name}`" for name in lowest) + "."
    text += "\n" + checks(rows)
    for name, title in BESIDE.items():
        if name in beside:
            text += other(title, beside[name])
    if "registered" in beside:
        text += other("Every registered codec in one run", beside["registered"]) + how_long(beside["registered"])
    if "python" in beside:
        text += other("Another domain: Python sources", beside["python"])
    if "long" in beside:
        text += other("Longer prompts", beside["long"])
    text += (per_token(beside["tables"]) if "tables" in beside else "") + passkeys(report) + layers(report)
    if "report" in beside:
        text += information(beside["report"], beside.get("layers", beside["report"]), folder)
    (folder / "quality.md").write_text(text, encoding="utf-8")


def profile_names():
    """What the codec of each built-in profile is called where it was measured from its file."""
    names = {}
    for path in sorted((ROOT / "kvcodec" / "profiles").glob("*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        bits = ",".join(f"layer.{i}={k}/{v}" for i, (k, v) in enumerate(profile["layers"]) if [k, v] != [4, 4])
        names[f"{profile['codec']}:{bits}"] = f"kvtuner:{profile['name']}"
    return names


# Runs of their own, over the same passages: what their table is called.
BESIDE = {
    "coupled": "Coupled channels",
    "coupled8": "Eight channels coupled",
    "profiles": "Bits by layer",
    "more": "Zero points of keys, two channels in 4 bits, and bits by layer at larger sizes",
}


def read(path):
    """A report whose codecs have short names: the file has hashes of codebooks and bits of layers in them."""
    text = re.sub(r"[:,]codebooks=[0-9a-f]{16}", "", path.read_text(encoding="utf-8"))
    for name, short in profile_names().items():
        text = text.replace(f'"{name}"', f'"{short}"')
    return json.loads(text)


def main():
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "results" / "quality.json"
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs"
    beside = {}
    for name in (*BESIDE, "registered", "python", "long", "tables", "report", "layers"):
        path = source.with_name(f"quality_{name}.json")
        if path.exists():
            beside[name] = read(path)
    render(read(source), beside, folder)


if __name__ == "__main__":
    main()
