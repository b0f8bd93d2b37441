"""The part of docs/quality.md on where the information is: one factor at a time. render_quality.py writes it."""

import math
from xml.sax.saxutils import escape

from quality_format import Axis, about, down, interval, passages_of, up, up3


# Groups of the report: title, and what to know.
REPORT_GROUPS = {
    "production": ("Codecs by their bytes", "The CPU backend's bytes, read back and attended on by plain LibTorch: to be the rows of the tables above, and those that a GPU does not have."),
    "rules": ("The papers' own rules", "KIVI's window (keys 128 at once, values one by one, no sinks) and NQKV's blocks of 256 values across heads, beside ours."),
    "keys_values": ("Keys against values", "KIVI's codes, groups of 32."),
    "axes": ("Axes of the scales", "Keys have channels that stay large, values do not."),
    "sinks": ("Sinks", ""),
    "window": ("Newest tokens in 16 bits", ""),
    "groups": ("Sizes of groups", ""),
    "levels": ("Levels", "Uniform from the smallest to the largest value; uniform over the range of least squared error; those of a normal distribution."),
    "means": ("Channel means of a block", "Taken out of keys and kept in 16 bits, then one scale per token."),
    "rotation": ("Walsh-Hadamard rotation", "Of the channels of a head, before the scales."),
    "scales": ("Bits of the scales", ""),
    "outliers": ("Outliers kept exact", "Those of each block that are farthest from their channel's mean, 32 bits each."),
    "rope": ("Keys before RoPE", ""),
}


def at_equal_bits(rows):
    """What min-max codes in groups of 32 lose at so many bits: log KL, straight between the measured points and a little below; else None."""
    base = sorted((r["bits"], math.log(r["kl"]["value"])) for r in rows if r["group"] == "keys_values" and r["name"] in ("K2V2", "K3V3", "K4V4", "K8V8"))
    if len(base) < 2:
        return lambda bits: None

    def kl(bits):
        if not base[0][0] - 0.75 <= bits <= base[-1][0]:
            return None
        at = max(1, min(len(base) - 1, sum(1 for b, _ in base if b < bits)))
        (b0, k0), (b1, k1) = base[at - 1], base[at]
        return math.exp(k0 + (k1 - k0) * (bits - b0) / (b1 - b0))

    return kl


def report_rows(rows, group, base):
    title, note = REPORT_GROUPS[group]
    text = f"\n### {title}\n\n" + (note + "\n\n" if note else "")
    text += "| | bits | KL, mean | times min-max at equal bits | perplexity ratio | top-1 % |\n|---|---|---|---|---|---|\n"
    for row in rows:
        if row["group"] != group:
            continue
        equal = base(row["bits"])
        times = "" if equal is None else up(row["kl"]["value"] / equal, 2)
        text += f"| {row['name']} | {up(row['bits'], 2)} | {interval(row['kl'], up3)} | {times} | {up(row['perplexity_ratio']['value'], 4)} | {down(100 * row['top1_agreement'], 2)} |\n"
    return text


def sensitivity(report, folder):
    """One layer, or one KV head, at 2 bits, everything else exact."""
    rows, name = report["report"]["rows"], report["setup"]["model"]
    parts = ["K and V", "K", "V"]
    by_layer = {}
    for row in rows:
        if row["group"] == "layers":
            by_layer.setdefault(row["layer"], {})[row["name"].split(", ")[1]] = row["kl"]["value"]
        elif row["group"] == "heads":
            by_layer.setdefault(row["layer"], {})[f"head {row['head']}"] = row["kl"]["value"]
    if not by_layer:
        return ""
    heads = sorted({key for cells in by_layer.values() for key in cells if key.startswith("head")})
    columns = [c for c in parts + heads if any(c in cells for cells in by_layer.values())]
    text = f"\n### Layer by layer\n\n{about(report)} {passages_of(report)}.\n\nMean KL with this layer alone at 2 bits (KIVI, groups of 32), K and V of it, one of the two, or one KV head.\n\n"
    drawn = [c for c in parts if c in columns]
    if drawn:
        bars(folder / "quality_layers.svg", f"{name}: one layer at 2 bits", by_layer, drawn)
        text += "![Mean KL with one layer at 2 bits](quality_layers.svg)\n\n"
    text += "| layer | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n"
    for layer in sorted(by_layer):
        text += f"| {layer} | " + " | ".join(up3(by_layer[layer][c]) if c in by_layer[layer] else "" for c in columns) + " |\n"
    return text


def bars(path, title, by_layer, parts):
    """Bars of every layer on a logarithmic scale."""
    width, height, left, right, top, bottom = 860, 360, 80, 30, 44, 56
    colours = {"K and V": "#475569", "K": "#1d4ed8", "V": "#c2410c"}
    values = [cells[p] for cells in by_layer.values() for p in parts if p in cells]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 1e-9)
    y = Axis(low, high, height - bottom, top)
    step = (width - left - right) / len(by_layer)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="24" font-size="15" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = y.at(10.0**exponent)
        out.append(f'<line x1="{left}" y1="{at:.1f}" x2="{width - right}" y2="{at:.1f}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#444444">{10.0**exponent:g}</text>')
    bar = step * 0.8 / len(parts)
    for i, layer in enumerate(sorted(by_layer)):
        x = left + i * step
        for j, part in enumerate(parts):
            if part not in by_layer[layer]:
                continue
            at = y.at(by_layer[layer][part])
            out.append(
                f'<rect x="{x + step * 0.1 + j * bar:.1f}" y="{at:.1f}" width="{bar:.1f}" height="{height - bottom - at:.1f}" fill="{colours[part]}">'
                f"<title>layer {layer}, {part}: {by_layer[layer][part]:.3g}</title></rect>"
            )
        out.append(f'<text x="{x + step / 2:.1f}" y="{height - bottom + 16}" text-anchor="middle" fill="#444444" font-size="10">{layer}</text>')
    for j, part in enumerate(parts):
        at = width - right - 90 * (len(parts) - j)
        out.append(f'<rect x="{at}" y="14" width="12" height="12" fill="{colours[part]}"/><text x="{at + 17}" y="24" fill="#222222">{part}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 14}" text-anchor="middle" fill="#222222">layer</text>')
    out.append(f'<text transform="translate(20 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle" fill="#222222">mean KL, nats</text>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n", encoding="utf-8")


def correlations(layers):
    """Of the channels of a head, by layer."""
    text = (
        "\n### Channels that hang together\n\nOf the prompts' K and V, mean over heads: |correlation| of two channels of a head, and the bits per value that the "
        "best linear transform of the head would save a quantizer of normal values.\n\n"
        "| layer | K before RoPE | K | V | bits, K before RoPE | bits, K | bits, V |\n|---|---|---|---|---|---|---|\n"
    )
    kinds = ("keys_before_rope", "keys", "values")
    for i, layer in enumerate(layers):
        text += f"| {i} | " + " | ".join(f"{layer[k]['mean']:.3f}" for k in kinds) + " | " + " | ".join(f"{layer[k]['gain_bits']:.2f}" for k in kinds) + " |\n"
    means = [[sum(layer[k][f] for layer in layers) / len(layers) for k in kinds] for f in ("mean", "gain_bits")]
    return text + "| mean | " + " | ".join(f"{v:.3f}" for v in means[0]) + " | " + " | ".join(f"{v:.2f}" for v in means[1]) + " |\n"


def ranked(rows, base):
    """The changes that gain and lose the most at 2 bits, of those with as many bits as min-max has there or more."""
    least = min(row["bits"] for row in rows if row["group"] == "keys_values")
    ratios = {}
    for row in rows:
        if row["group"] in REPORT_GROUPS and row["group"] != "production" and row["name"].startswith("2 bits") and row["bits"] >= least:
            ratio = row["kl"]["value"] / base(row["bits"])
            ratios.setdefault((ratio, row["bits"]), (row["name"], REPORT_GROUPS[row["group"]][0]))  # once, where sections share it
    text = "\n### What pays at 2 bits, and what does not\n\n| mean KL, times min-max at equal bits | bits | what | section |\n|---|---|---|---|\n"
    ordered = sorted(ratios)
    for ratio, bits in ordered[:6] + ordered[-6:]:
        text += f"| {up(ratio, 2)} | {up(bits, 2)} | " + " | ".join(ratios[ratio, bits]) + " |\n"
    return text


def information(report, by_layer, folder):
    """by_layer: the report that has the groups layers and heads."""
    rows = report["report"]["rows"]
    positions = rows[0]["positions"]
    text = (
        f"\n## Where the information is\n\n{about(report)}\n\n{passages_of(report)}: {positions:,} positions.\n\n"
        "One factor is changed at a time, of KIVI's codes in our blocks: K per channel, V per token, groups of 32, 4 sinks, 128 recent tokens. "
        "The codes are made and read by plain LibTorch from the papers' formulas, and attended on by plain LibTorch: all tokens after the prompt in one "
        "step of the model, each query over those keys and values as codes that were codes when it came. Bits count scales, means, outliers, sinks and window.\n"
    )
    base = at_equal_bits(rows)
    if any(row["group"] == "keys_values" for row in rows):
        text += ranked(rows, base)
    for group in REPORT_GROUPS:
        if any(row["group"] == group for row in rows):
            text += report_rows(rows, group, base)
    return text + sensitivity(by_layer, folder) + correlations(report["report"]["correlations"])
