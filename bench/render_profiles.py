#!/usr/bin/env python3
"""Writes docs/profiles.md from the built-in profiles (kvcodec/profiles/*.json, with the record of the search that found each) and
bench/results/quality_profiles.json (the quality bench, on text that no search has seen): every number there comes from these files.

  bench/render_profiles.py
"""

import decimal
import json
import pathlib

import render_quality

ROOT = pathlib.Path(__file__).resolve().parents[1]
ERRORS = ("keys", "values", "scores", "output")

HEAD = """# Profiles

Codecs `kvtuner:*` give each layer its own bits for keys and for values, after KVTuner (arXiv 2502.04420): the same blocks and groups as
`kivi-*-g64`, the bits chosen by a search on the model. Written by `bench/render_profiles.py`; numbers are rounded against us.

## How they are found

`kvferry calibrate profile` prefills passages exactly and measures through the path that serves (hand-off, pool, windows, flushes, decode
attention), teacher-forced, the mean KL(exact ‖ codec) of the next token over the whole vocabulary:

1. relative errors of keys, values, attention probabilities and attention output for every layer and pair of bits, at the exact model's queries;
2. the KL with one layer alone lowered, all others in 16 bits, for every layer and pair;
3. the exact knapsack over these KLs for the budget, as if they added up; then a repair pass: neighbours of the best choice so far (one or two
   layers changed, within the budget) measured with all layers lowered;
4. beside it the paper's way: pairs of a layer pruned to the Pareto front of size and output error, layers with the same pairs grouped by DBSCAN
   (eps 0.05, 2 samples), and NSGA-II over one pair per group, every choice measured. Its objective in the paper is GSM8K accuracy, which a small
   model does not have; here it is the same KL.

The better of the two within the budget is the profile.
"""


def up(value, digits):
    """The value with so many significant digits, rounded up."""
    number = decimal.Decimal(repr(value))
    step = decimal.Decimal(1).scaleb(number.adjusted() - digits + 1)
    return f"{number.quantize(step, rounding=decimal.ROUND_CEILING):.{digits - 1}e}"


def down(value, digits):
    number = decimal.Decimal(repr(value))
    step = decimal.Decimal(1).scaleb(number.adjusted() - digits + 1)
    return f"{number.quantize(step, rounding=decimal.ROUND_FLOOR):.{digits - 1}e}"


def ratio(one, other):
    return f"{decimal.Decimal(repr(one / other)).quantize(decimal.Decimal('0.01'), rounding=decimal.ROUND_CEILING)}"


def same_size(search):
    """The best uniform pair that is no larger than the budget."""
    fitting = {pair: point for pair, point in search["uniform"].items() if point["bits_per_value"] <= search["budget_bits"] + 1e-9}
    return min(fitting.items(), key=lambda item: item[1]["kl"])


def found(profiles):
    text = "\n## What was found\n\n"
    text += "| profile | budget, bits | bits | KL, nats | best uniform K/V of that budget | its KL | ratio |\n|---|---|---|---|---|---|---|\n"
    for profile in profiles:
        search = profile["search"]
        pair, uniform = same_size(search)
        point = search["found"]
        text += f"| `kvtuner:{profile['name']}` | {search['budget_bits']:.2f} | {point['bits_per_value']:.3f} | {up(point['kl'], 3)} "
        text += f"| {pair}, {uniform['bits_per_value']:.2f} bits | {down(uniform['kl'], 3)} | {ratio(point['kl'], uniform['kl'])} |\n"
    text += "\nOn the calibration passages themselves; on other text below.\n"
    text += "\n| profile | knapsack alone | repaired | NSGA-II | knapsack's measurements | NSGA-II's | area of the fronts, bits * nats |\n|---|---|---|---|---|---|---|\n"
    for profile in profiles:
        search = profile["search"]
        knapsack, nsga2 = search["knapsack"], search["nsga2"]
        best = up(nsga2["best"]["kl"], 3) if "best" in nsga2 else "none within the budget"
        text += f"| `kvtuner:{profile['name']}` | {up(knapsack['before_repair']['kl'], 3)} | {up(knapsack['after_repair']['kl'], 3)} | {best} "
        text += f"| {knapsack['measured']} | {nsga2['measured']} | {knapsack['volume']:.4f} against {nsga2['volume']:.4f} |\n"
    text += "\nThe area is what a front dominates up to the worst uniform codec: the larger, the better.\n"
    for profile in profiles:
        search = profile["search"]
        machine = search["machine"]
        text += f"\n`{search['command']}`, {search['date'][:10]}, commit {search['commit']}, {machine['cpu']}, {machine['cores']} cores: "
        text += f"{search['passages']} passages of {search['prompt_tokens']} + {search['decode_tokens']} tokens of `{search['text']}` "
        text += f"(CRC32C {search['text_crc32c']}), NSGA-II with {search['nsga2']['population']} x {search['nsga2']['generations']} and seed {search['nsga2']['seed']}, "
        text += f"{len(search['nsga2']['groups'])} groups of layers.\n"
    return text


def held_out(report, profiles):
    setup, machine = report["setup"], report["machine"]
    rows = {row["codec"]: row for row in report["codecs"]}
    text = f"\n`{report['command']}`, {report['date'][:10]}, commit {report['commit']}, {machine['cpu']}, {machine['cores']} cores: "
    text += f"{setup['passages']} passages of {setup['prompt_tokens']} + {setup['decode_tokens']} tokens of `{setup['text']}` (CRC32C {setup['text_crc32c']}). "
    text += "Columns as in [quality.md](quality.md); brackets are 95 % intervals.\n\n"
    text += "| codec | bits of a block | KL, mean, nats | perplexity ratio | top-1 % |\n|---|---|---|---|---|\n"
    uniform = [name for name in rows if name.startswith("kivi-") and "-g64" in name and "v_bits" not in name]
    for name in uniform + [name for name in rows if name.startswith("kvtuner:")]:
        row = rows[name]
        kl, ppl = row["kl"], row["perplexity_ratio"]
        text += f"| `{row['codec']}` | {row['block_bits_per_value']:.3f} | {up(kl['value'], 3)} [{down(kl['low'], 3)}, {up(kl['high'], 3)}] "
        text += f"| {ppl['value']:.4f} [{ppl['low']:.4f}, {ppl['high']:.4f}] | {100 * row['top1_agreement']:.2f} |\n"
    text += "\n| profile | uniform codec of as many bits | KL over its KL |\n|---|---|---|\n"
    for profile in profiles:
        row = rows.get(f"kvtuner:{profile['name']}")
        if row is None:
            continue
        for name, other in rows.items():
            if name in uniform and abs(other["block_bits_per_value"] - profile["search"]["budget_bits"]) < 1e-9:
                text += f"| `{row['codec']}` | `{name}` | {ratio(row['kl']['value'], other['kl']['value'])} |\n"
    return text


def layers(profiles):
    text = "\n## Bits of every layer\n\nK/V.\n\n| layer | " + " | ".join(f"`{p['name']}`" for p in profiles) + " |\n"
    text += "|---" * (len(profiles) + 1) + "|\n"
    for layer in range(len(profiles[0]["layers"])):
        text += f"| {layer} | " + " | ".join("{}/{}".format(*p["layers"][layer]) for p in profiles) + " |\n"
    return text


def sensitivity(profile):
    measured = profile["search"]["layers"]
    pairs = list(measured[0]["kl"])
    text = "\n## Sensitivity\n\nKL in nats with that layer alone at K/V bits.\n\n| layer | " + " | ".join(pairs) + " |\n"
    text += "|---" * (len(pairs) + 1) + "|\n"
    for layer, one in enumerate(measured):
        text += f"| {layer} | " + " | ".join(up(one["kl"][pair], 2) for pair in pairs) + " |\n"
    pairs = list(measured[0]["errors"])
    at = ERRORS.index("output")
    text += "\nRelative error of the attention output.\n\n| layer | " + " | ".join(pairs) + " | left after pruning |\n"
    text += "|---" * (len(pairs) + 2) + "|\n"
    for layer, one in enumerate(measured):
        text += f"| {layer} | " + " | ".join(up(one["errors"][pair][at], 2) for pair in pairs)
        text += " | " + " ".join(one["candidates"]) + " |\n"
    return text


def main():
    profiles = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "kvcodec" / "profiles").glob("*.json"))]
    text = HEAD + found(profiles)
    text += "\n## On text that the search has not seen\n"
    for name in ("quality_profiles.json", "quality_more.json"):
        text += held_out(render_quality.read(ROOT / "bench" / "results" / name), profiles)
    text += layers(profiles) + sensitivity(profiles[0])
    (ROOT / "docs" / "profiles.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
