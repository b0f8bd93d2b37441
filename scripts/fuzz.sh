#!/usr/bin/env bash
# Builds the libFuzzer targets with clang and runs each of them on its corpus:
#   scripts/fuzz.sh [SECONDS]     for so long each [30]; stops at the first finding, which is then in build/fuzz/findings/
# What it finds belongs into tests/fuzz/corpus/ with the fix: the tests replay that folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-30}

scripts/deps.sh --with-clang
targets=(chunk_header gguf safetensors tokenizer_json)
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target "${targets[@]/%/_fuzz}"
mkdir -p build/fuzz/findings
for target in "${targets[@]}"; do
  mkdir -p "build/fuzz/corpus/$target" # new inputs go here, not among the sources
  echo "$target: $seconds s"
  "build/fuzz/bin/${target}_fuzz" -max_total_time="$seconds" -timeout=10 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" 2>&1 | tail -8
done
