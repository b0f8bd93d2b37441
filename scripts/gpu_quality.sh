#!/usr/bin/env bash
# Measures docs/quality.md's numbers on a GPU host, in a folder that scripts/bundle.sh made (kvferry-quality is enough), or
# here with BIN=build/release/bin. A run that was stopped goes on from its state in OUT.
#   gpu_quality.sh MODEL TEXT OUT [main] [python] [long] [report]     without names: all
# CODEBOOKS: files of `kvferry calibrate codebooks`, whose coupled codecs `main` measures too.
# TEXT: WikiText-2 raw, test. PYTHON_SOURCES: folders of the second domain, here of the standard library.
# Then copy OUT/quality*.json to bench/results/ and run bench/render_quality.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 3 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
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

measure() { # NAME FILE FLAGS...
  local name=$1 file=$2
  shift 2
  echo "[quality] $name" >&2
  (exec -a "kvferry bench quality" "$bin/kvferry-quality" --model "$model" --device "$device" --state "$out/$name.jsonl" \
    --out "$out/$file.json" "$@")
}

for name in "${names[@]}"; do
  case "$name" in
    main) measure main quality --text "$text" --sanity --passkeys 2 "${codebooks[@]}" ;;
    python) measure python quality_python --text "${sources[@]}" --codecs "$some" ;;
    long) measure long quality_long --text "$text" --codecs "$some" --prompt-tokens 4096 --decode-tokens 512 ;;
    report) measure report quality_report --text "$text" --report all --decode-tokens 512 --passages "${REPORT_PASSAGES:-4}" ;;
    *) echo "gpu_quality.sh: no '$name'" >&2; exit 2 ;;
  esac
done
