#!/usr/bin/env bash
# clang-format and clang-tidy over our sources:
#   scripts/lint.sh [FILE...]     without files: all of them
# clang-tidy reads build/release/compile_commands.json, so build once before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=("$@")
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
clang-format --dry-run -Werror "${files[@]}"
sources=()
for file in "${files[@]}"; do
  case "$file" in tests/* | bench/* | examples/* | *.h) ;; *.cc) sources+=("$file") ;; esac
done
[ ${#sources[@]} -eq 0 ] || printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p build/release --quiet
