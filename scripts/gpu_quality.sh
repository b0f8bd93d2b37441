#!/usr/bin/env bash
# Measures docs/quality.md's numbers on a GPU host, in a folder that scripts/bundle.sh made (kvferry-quality is enough), or
# here with BIN=build/release/bin. A run that was stopped goes on from its state in OUT.
#   gpu_quality.sh MODEL TEXT OUT [main] [python] [long] [report]     without names: all
# CODEBOOKS: files of `kvferry calibrate codebooks`, whose coupled codecs `main` and `python` measure too.
# JOBS: so many processes share the work of each name, on one GPU too. Each goes on from OUT/NAME.jsonl, and what they have
# measured is put there when all have ended, or when the next run begins; the last one reads it and writes the JSON.
# REPORT: groups of the report [all], with commas; REPORT_PASSAGES: of how many passages [4].
# TEXT: WikiText-2 raw, test. PYTHON_SOURCES: folders of the second domain, here of the standard library.
# Then copy OUT/quality*.json to bench/results/ and run bench/render_quality.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 3 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
model=$1 text=$2 out=$3
mkdir -p "$out"
shift 3
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(main python long report)
library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
read -ra sources <<<"${PYTHON_SOURCES:-$library/asyncio $library/email $library/unittest}"
bin=$(realpath "${BIN:-$here/bin}")
if [ -f "$here/env.sh" ]; then
  set +e # it says itself what is missing
  # shellcheck disable=SC1091
  source "$here/env.sh"
  set -e
fi
if [ -f "$here/commit.txt" ]; then
  KVFERRY_COMMIT=$(head -1 "$here/commit.txt")
  export KVFERRY_COMMIT
fi
device=${DEVICE:-cuda:0}
codebooks=()
for file in ${CODEBOOKS:-}; do codebooks+=(--codebooks "$file"); done
some=kivi-4,kivi-4-g64,kivi-k4v2,kivi-2,kivi-2-g64,int8,fp8,nqkv-nf4
jobs=${JOBS:-1}
threads=()
[ "$jobs" -eq 1 ] || threads=(--threads $((($(nproc) + jobs - 1) / jobs)))
running=()
# A part that is left alone would go on measuring into a file that the next run has merged and removed.
trap '[ ${#running[@]} -eq 0 ] || kill "${running[@]}" 2>/dev/null || true' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

bench() { # NAME FLAGS...
  local name=$1
  shift
  exec -a "kvferry bench quality" "$bin/kvferry-quality" --model "$model" --device "$device" --state "$out/$name.jsonl" "$@"
}

# Whole lines of the state of NAME and of its parts, each once, in the state of NAME. All begin with what the run is.
merge() {
  local state=$out/$1.jsonl file
  local files=()
  for file in "$state" "$out/$1".part*.jsonl; do
    # A process that is killed at once leaves no line.
    if [ -f "$file" ] && [ "$(wc -l <"$file")" -gt 0 ]; then files+=("$file"); fi
  done
  if [ ${#files[@]} -gt 0 ]; then
    for file in "${files[@]}"; do
      if [ "$(head -n 1 "$file")" != "$(head -n 1 "${files[0]}")" ]; then
        echo "gpu_quality.sh: $file is of another run than ${files[0]}; move it away" >&2
        exit 1
      fi
    done
    for file in "${files[@]}"; do head -n "$(wc -l <"$file")" "$file"; done | awk '!seen[$0]++' >"$state.new"
    mv "$state.new" "$state"
  fi
  rm -f "$out/$1".part*.jsonl
}

measure() { # NAME FILE FLAGS...
  local name=$1 file=$2 part process failed=""
  shift 2
  echo "[quality] $name" >&2
  merge "$name"
  if [ "$jobs" -gt 1 ]; then
    for ((part = 0; part < jobs; ++part)); do
      [ ! -s "$out/$name.jsonl" ] || cp "$out/$name.jsonl" "$out/$name.part$part.jsonl"
      (bench "$name.part$part" "${threads[@]}" --part "$part/$jobs" "$@") 2>"$out/$name.part$part.log" &
      running+=($!)
    done
    for process in "${running[@]}"; do wait "$process" || failed=1; done
    running=()
    if [ -n "$failed" ]; then
      tail -n 3 "$out/$name".part*.log >&2
      exit 1
    fi
    merge "$name"
  fi
  (bench "$name" --out "$out/$file.json" "$@")
}

for name in "${names[@]}"; do
  case "$name" in
    main) measure main quality --text "$text" --sanity --passkeys 2 "${codebooks[@]}" ;;
    python) measure python quality_python --text "${sources[@]}" --codecs "$some,nf3,lm3,lm2" "${codebooks[@]}" ;;
    long) measure long quality_long --text "$text" --codecs "$some" --prompt-tokens 4096 --decode-tokens 512 ;;
    report) measure report quality_report --text "$text" --report "${REPORT:-all}" --decode-tokens 512 --passages "${REPORT_PASSAGES:-4}" ;;
    *) echo "gpu_quality.sh: no '$name'" >&2; exit 2 ;;
  esac
done
