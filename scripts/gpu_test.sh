#!/usr/bin/env bash
# Runs the GPU tests and benches of a bundle (scripts/bundle.sh) on this host and writes JSON. Needs the NVIDIA driver, and torch
# of the version that the bundle was built for where `python3` finds it (for its libraries).
#   ./gpu_test.sh [--out FOLDER] [--tests] [--sanitize] [--bench] [--python PYTHON] [--model GGUF] [NAME...]
# Without --tests, --sanitize or --bench: tests, then benches. --sanitize runs those of kernels/ under compute-sanitizer's
# memcheck and racecheck, of attention the small shapes. --model: the demo model (scripts/deps.sh), for tests that otherwise take a small one of random weights.
# NAME: only programs whose name contains it. Exit code 1: a test failed.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

out="$here/results"
python=python3
run_tests="" run_sanitizer="" run_bench=""
names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --model)
      KVFERRY_DEMO_MODEL=$(realpath "${2:?--model needs a file}") || exit 2
      export KVFERRY_DEMO_MODEL
      shift 2
      ;;
    --python) python=${2:?--python needs a program}; shift 2 ;;
    --tests) run_tests=1; shift ;;
    --sanitize) run_sanitizer=1; shift ;;
    --bench) run_bench=1; shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "gpu_test.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    *) names+=("$1"); shift ;;
  esac
done
[ -n "$run_tests$run_sanitizer$run_bench" ] || run_tests=1 run_bench=1

if ! nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader; then
  echo "gpu_test.sh: nvidia-smi shows no GPU; install the NVIDIA driver, or give the container a GPU" >&2
  exit 1
fi
PYTHON=$python
source "$here/env.sh"
mkdir -p "$out"
cd "$here" || exit 1

wanted() {
  [ ${#names[@]} -eq 0 ] && return 0
  local name
  for name in "${names[@]}"; do [[ $1 == *"$name"* ]] && return 0; done
  return 1
}

failed=()
# A program that hangs must not take the others' time.
test_one() {
  local label=$1 seconds=$2
  shift 2
  echo "[gpu_test] $label"
  timeout "$seconds" "$@" >"$out/$label.log" 2>&1
  local code=$?
  tail -n 3 "$out/$label.log" | sed 's/^/    /'
  [ $code -eq 0 ] || { failed+=("$label"); echo "[gpu_test] $label failed with exit code $code; $out/$label.log"; }
}

if [ -n "$run_tests" ]; then
  while read -r test; do
    wanted "$test" && test_one "$test" 500 "bin/$test" --gtest_output="json:$out/$test.json"
  done <gpu_tests.txt
fi
if [ -n "$run_sanitizer" ]; then
  while read -r test; do
    for tool in memcheck racecheck; do
      # A test that asks CUDA for too much expects its refusal: that is no error.
      options=()
      [ "$tool" = memcheck ] && options=(--report-api-errors no)
      # Of attention all kernels on small shapes: its long contexts would take hours.
      filter='*'
      [ "$test" = kernels_decode_attention_test ] && filter='*EveryVariant*'
      wanted "$test" &&
        test_one "$test.$tool" 300 compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 "bin/$test" --gtest_filter="$filter"
    done
  done < <(grep '^kernels_' gpu_tests.txt)
fi
if [ -n "$run_bench" ]; then
  KVFERRY_COMMIT=$(paste -sd' ' commit.txt) # for the reports: a bundle is no repository
  export KVFERRY_COMMIT
  for bench in bin/gpu_*_bench; do
    name=$(basename "$bench")
    [ -x "$bench" ] && wanted "$name" && test_one "$name" 500 "$bench" --out "$out/$name.json"
  done
fi

[ ${#failed[@]} -eq 0 ] || { echo "[gpu_test] failed: ${failed[*]}" >&2; exit 1; }
echo "[gpu_test] all passed; JSON and logs are in $out"
