#!/usr/bin/env python3
"""Holds docs/metrics.md to the metrics that the code registers, names and label keys.

  tests/layering/check_metrics.py [ROOT]      exit code 1 and one line per difference
"""

import pathlib
import re
import sys

FOLDERS = ["common", "kvcodec", "kvcache", "transport", "rpc", "model", "worker", "prefill_node", "decode_node", "router", "cli"]
LABEL = re.compile(r'\{\{"(\w+)",')
DOCUMENTED = re.compile(r"^\| `(kvferry_\w+)(?:\{(\w+)\})?` \|", re.MULTILINE)
KIND = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}
NAME_AND_KIND = re.compile(r'Get(Counter|Gauge|Histogram)\s*\(\s*"(kvferry_\w+)"')
DOCUMENTED_KIND = re.compile(r"^\| `(kvferry_\w+)(?:\{\w+\})?` \| (\w+) \|", re.MULTILINE)


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    kinds, labels = {}, {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.cc")):
            text = path.read_text(encoding="utf-8")
            for match in NAME_AND_KIND.finditer(text):
                kinds[match.group(2)] = KIND[match.group(1)]
                # The labels stand before the next metric is asked for.
                rest = text[match.end() :]
                following = NAME_AND_KIND.search(rest)
                call = rest[: following.start() if following else len(rest)]
                label = LABEL.search(call[: call.find(";") if ";" in call else len(call)])
                labels.setdefault(match.group(2), set()).update([label.group(1)] if label else [])
    page = (root / "docs/metrics.md").read_text(encoding="utf-8")
    documented = dict(DOCUMENTED_KIND.findall(page))
    documented_labels = {name: {label} if label else set() for name, label in DOCUMENTED.findall(page)}
    if not kinds:
        sys.exit("no metric found in the code: the pattern of this check is out of date")
    problems = [f"{name} is not in docs/metrics.md" for name in sorted(kinds.keys() - documented.keys())]
    problems += [f"{name} is in docs/metrics.md but nobody registers it" for name in sorted(documented.keys() - kinds.keys())]
    for name in sorted(kinds.keys() & documented.keys()):
        if kinds[name] != documented[name]:
            problems.append(f"{name} is a {kinds[name]}, docs/metrics.md says {documented[name]}")
        if labels[name] != documented_labels[name]:
            problems.append(f"{name} has labels {sorted(labels[name])}, docs/metrics.md says {sorted(documented_labels[name])}")
    print("\n".join(problems))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
