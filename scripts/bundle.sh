#!/usr/bin/env bash
# Makes a folder that runs on a GPU host without build tools: programs, GPU tests and benches, the files of these, and every
# shared library but glibc's, the C++ runtime and LibTorch's (gpu_test.sh finds the host's own torch of the same version).
#   scripts/bundle.sh [--build FOLDER] [--out FOLDER] [--archive] [PROGRAM...]
# Build first, on a machine with CUDA (cmake -DKVFERRY_CUDA=ON). Without programs: kvferry and the workers, all tests with the
# label gpu, all benches named gpu_*, kvferry-quality and quality_gpu_bench. --archive writes OUT.tar.xz too, for tar -xJf (or Python's
# tarfile) on the other host. There: OUT/gpu_test.sh --help; for the programs, source OUT/env.sh first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
out=build/bundle
archive=""
programs=()
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --archive) archive=1; shift ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "bundle.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    *) programs+=("$1"); shift ;;
  esac
done
if [ ! -f "$build/build.ninja" ]; then
  echo "bundle.sh: $build is no build folder; run scripts/build.sh first, or say --build" >&2
  exit 1
fi
if ! grep -q '^KVFERRY_CUDA_ENABLED:INTERNAL=ON' "$build/CMakeCache.txt"; then
  echo "bundle.sh: $build was built without CUDA; configure it with -DKVFERRY_CUDA=ON" >&2
  exit 1
fi

mapfile -t tests < <(ctest --test-dir "$build" -N -L gpu | sed -n 's/^ *Test *#[0-9]*: //p')
if [ ${#programs[@]} -eq 0 ]; then
  programs=(kvferry kvferry-router kvferry-prefill kvferry-decode kvferry-quality quality_gpu_bench "${tests[@]}")
  programs+=(transport_peer) # of transport_ucx_gpu_test
  for bench in "$build"/bin/gpu_*_bench; do
    [ -x "$bench" ] && programs+=("$(basename "$bench")")
  done
fi

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/tests"
for program in "${programs[@]}"; do
  if [ ! -x "$build/bin/$program" ]; then
    echo "bundle.sh: $build/bin/$program is not built" >&2
    exit 1
  fi
  strip -o "$out/bin/$program" "$build/bin/$program"
done
for test in "${tests[@]}"; do
  [ -x "$out/bin/$test" ] && echo "$test"
done >"$out/gpu_tests.txt"
cp -r tests/golden "$out/tests/"
mkdir -p "$out/bench"
cp -r bench/shapes "$out/bench/"
cp scripts/gpu_test.sh scripts/gpu_quality.sh "$out/"
cp scripts/gpu_env.sh "$out/env.sh"
git rev-parse --short HEAD >"$out/commit.txt"
[ -z "$(git status --porcelain)" ] || echo "with uncommitted changes" >>"$out/commit.txt"

# What the programs load, without the host's own. UCX loads its modules by itself, from beside libucs: the wheel stays whole.
LD_LIBRARY_PATH="$PWD/.deps/torch/torch/lib" ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libgomp)\.so|/\.deps/' |
  while read -r library; do
    cp -L "$library" "$out/lib/"
    strip --strip-unneeded "$out/lib/$(basename "$library")"
  done
mkdir -p "$out/lib/ucx"
cp -r .deps/ucx/libucx/lib "$out/lib/ucx/"
cp -r .deps/ucx/libucx_cu13.libs "$out/lib/ucx/libucx_cu13.libs"
rm -rf "$out/lib/ucx/lib/cmake" "$out/lib/ucx/lib/pkgconfig"
# The wheel has three copies of each library; UCX looks for the one with the suffix of its own libucs, .so.0.
find "$out/lib/ucx/lib" \( -name '*.a' -o -name '*.la' -o -name '*.so' -o -name '*.so.0.*' \) -delete
rm -f "$out"/lib/ucx/lib/ucx/libucx_perftest_* # modules of ucx_perftest, which is not here
find "$out/lib/ucx/lib" -name '*.so*' -type f -exec strip --strip-unneeded {} +

echo "[bundle] $out: ${#programs[@]} programs, $(du -sm "$out" | cut -f1) MiB"
if [ -n "$archive" ]; then
  # Most of each program is the same kernels: a dictionary that reaches back over all of them stores these once.
  tar -C "$(dirname "$out")" --sort=name --owner=0 --group=0 -cf - "$(basename "$out")" | xz -T1 --lzma2=preset=6,dict=128MiB,mf=hc4 >"$out.tar.xz"
  echo "[bundle] $out.tar.xz: $(du -sm --apparent-size "$out.tar.xz" | cut -f1) MiB"
fi
