# kvferry_library(NAME SRCS... [PUBLIC deps...] [PRIVATE deps...]) makes kvferry_NAME with the alias kvferry::NAME.
# Third parties go into PRIVATE wherever no header of the folder shows them.
include(CheckCXXCompilerFlag)

add_library(kvferry_flags INTERFACE)
target_compile_options(kvferry_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wno-missing-field-initializers;-ffp-contract=off>"
  # Host code of a .cu file; nvcc's own warnings are errors too. Device code says itself what is fused.
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;--compress-mode=size;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers;--expt-relaxed-constexpr>")
target_include_directories(kvferry_flags INTERFACE "${CMAKE_SOURCE_DIR}")
if(KVFERRY_SANITIZE)
  target_compile_options(kvferry_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${KVFERRY_SANITIZE};-fno-omit-frame-pointer>")
  target_link_options(kvferry_flags INTERFACE "-fsanitize=${KVFERRY_SANITIZE}")
endif()

function(kvferry_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;PUBLIC;PRIVATE" ${ARGN})
  add_library(kvferry_${name} STATIC ${ARG_SRCS})
  add_library(kvferry::${name} ALIAS kvferry_${name})
  target_link_libraries(kvferry_${name} PUBLIC kvferry_flags ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

# kvferry_binary(NAME SRCS... DEPS...) makes the program NAME in bin/.
function(kvferry_binary name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE kvferry_flags ${ARG_DEPS})
endfunction()

# kvferry_test(NAME SRCS... DEPS... [LABELS...] [TIMEOUT s]) makes one GoogleTest program and registers it with CTest.
function(kvferry_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE kvferry_flags ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(KVFERRY_SANITIZE)
    # How much longer tests wait: CTest here, their own limits by tests/fakes/wait_limit.h.
    set(slowdown 5)
    math(EXPR ARG_TIMEOUT "${slowdown} * ${ARG_TIMEOUT}")
    target_compile_definitions(${name} PRIVATE KVFERRY_TEST_SLOWDOWN=${slowdown})
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
  # As the workers set it for themselves: OpenMP threads that spin take the cores from the others.
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "GOMP_SPINCOUNT=2000")
endfunction()
