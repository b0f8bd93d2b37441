#!/usr/bin/env bash
# clang-format and clang-tidy over our sources:
#   scripts/lint.sh [FILE...]     without files: all of them, which takes long
# clang-tidy reads a compilation database of its own, build/lint: gcc's precompiled headers are nothing for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=("$@")
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
clang-format --dry-run -Werror "${files[@]}"
sources=()
for file in "${files[@]}"; do
  case "$file" in tests/* | bench/* | examples/* | *.h) ;; *.cc) sources+=("$file") ;; esac
done
[ ${#sources[@]} -gt 0 ] || exit 0
cmake --preset release -B build/lint -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON >/dev/null
cmake --build build/lint --target kvferry_proto >/dev/null # its generated headers
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p build/lint --quiet
