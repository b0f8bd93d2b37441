#!/usr/bin/env bash
# Installs what is missing, builds everything and runs all tests:
#   scripts/test.sh [CTEST ARGUMENT...]     for example: scripts/test.sh -R transport
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/deps.sh --with-test-tools
scripts/build.sh
ctest --preset release --no-tests=error "$@"
