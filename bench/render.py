#!/usr/bin/env python3
"""Writes docs/measurements.md from bench/results/*.json: every number there comes from such a file.

  bench/render.py
"""

import json
import math
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

HEAD = """# Measurements

Written by `bench/render.py` from `bench/results/*.json`; `bench/run.sh` makes those and, on a GPU host,
`gpu_test.sh --bench` of a bundle (`scripts/bundle.sh`). Every row is a ratio against a baseline of the same run on the same machine. Numbers are rounded against us.
"""


def cut(value, bar):
    """Three decimals, never in our favour: up where the bar is an upper one, else down."""
    scaled = math.ceil(value * 1000) if "<=" in bar else math.floor(value * 1000)
    return f"{scaled / 1000:.3f}"


def main():
    text = HEAD
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in report:  # quality.json has a page of its own: render_quality.py
            continue
        machine = report["machine"]
        text += f"\n## {report['bench']}\n\n"
        text += f"`{report['command']}`, {report['date'][:10]}, commit {report['commit']}, {machine['cpu']}, {machine['cores']} cores.\n\n"
        text += "| what | ratio | baseline | bar |\n|---|---|---|---|\n"
        for row in report["rows"]:
            text += f"| {row['what']} | {cut(row['ratio'], row['bar'])} | {row['baseline']} | {row['bar']} |\n"
    (ROOT / "docs" / "measurements.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
