#!/usr/bin/env bash
# Installs what is missing and builds the release preset. Called by quickstart.sh and test.sh.
#   scripts/build.sh [TARGET...]     without targets: everything
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/deps.sh
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
if [ ! -f build/release/build.ninja ]; then
  echo "[build] configuring"
  cmake --preset release "${launcher[@]}" >build-configure.log 2>&1 || { cat build-configure.log >&2; exit 1; }
  mv build-configure.log build/release/configure.log
fi
echo "[build] compiling on $(nproc) cores (the first time takes some minutes)"
targets=()
[ $# -gt 0 ] && targets=(--target "$@")
NINJA_STATUS='[build] [%f/%t %es] ' cmake --build --preset release "${targets[@]}"
