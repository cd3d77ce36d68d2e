# What was found, and what is off and why: the last thing that configuring prints.
function(moecollab_header_version result file)  # from lines "#define NAME number", in the order of the names
  set(version "")
  file(STRINGS ${file} lines REGEX "^#define")
  foreach(name ${ARGN})
    foreach(line ${lines})
      if(line MATCHES "^#define[ \t]+${name}[ \t]+([0-9]+)")
        list(APPEND version ${CMAKE_MATCH_1})
      endif()
    endforeach()
  endforeach()
  list(JOIN version "." version)
  set(${result} ${version} PARENT_SCOPE)
endfunction()
function(moecollab_on_off result option if_on if_off)
  if(${option})
    set(${result} ${if_on} PARENT_SCOPE)
  else()
    set(${result} ${if_off} PARENT_SCOPE)
  endif()
endfunction()
if(MOECOLLAB_KERNELS_ONLY)
  moecollab_on_off(cudnn MOECOLLAB_CUDNN_LIBRARIES "${CUDNN_GRAPH_LIBRARY}"
    "not found: attention runs on its own kernels, its cuDNN part is left out")
  moecollab_on_off(dnnl DNNL_LIBRARY "${DNNL_LIBRARY}" "not found: plain loops on the CPU, which only checks the device here")
  message(STATUS "
  MoECollab ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, kernels only (MOECOLLAB_KERNELS_ONLY): core, numerics and ops, without
  comm, nn, data and the programs; without MPI, HDF5, Boost, fmt, JSON, xxHash, SentencePiece, zlib and NCCL
    compiler       ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}
    CUDA           ${MOECOLLAB_CUDA_TEXT}
    cuBLASLt       ${CUBLASLT_LIBRARY}
    cuDNN          ${cudnn}
    oneDNN         ${dnnl}
    Random123      ${RANDOM123_INCLUDE_DIR}
    tests          ${MOECOLLAB_TESTS}
    benchmarks     ${MOECOLLAB_BENCHMARKS}
")
  return()
endif()
set(dnnl_version_file ${DNNL_INCLUDE_DIR}/dnnl_version.h)
if(EXISTS ${DNNL_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h)
  set(dnnl_version_file ${DNNL_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h)
endif()
moecollab_header_version(dnnl_version ${dnnl_version_file} DNNL_VERSION_MAJOR DNNL_VERSION_MINOR DNNL_VERSION_PATCH)
moecollab_header_version(xxhash_version ${XXHASH_INCLUDE_DIR}/xxhash.h XXH_VERSION_MAJOR XXH_VERSION_MINOR XXH_VERSION_RELEASE)
execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpi_version ERROR_QUIET)
string(REGEX REPLACE "\n.*" "" mpi_version "${mpi_version}")

moecollab_on_off(native MOECOLLAB_NATIVE "this processor (MOECOLLAB_NATIVE=OFF for any x86-64)" "any processor (MOECOLLAB_NATIVE=OFF)")
if("-mno-avx512f" IN_LIST MOECOLLAB_NATIVE_FLAGS)
  string(APPEND native ", without AVX-512, which this compiler gets wrong (cmake/probes)")
endif()
moecollab_on_off(werror MOECOLLAB_WERROR "errors" "shown (MOECOLLAB_WERROR=ON makes them errors)")
set(sanitizer_text "address, leak, undefined behaviour")
if(MOECOLLAB_SANITIZE STREQUAL "THREAD")
  set(sanitizer_text "thread")
endif()
moecollab_on_off(sanitizers MOECOLLAB_SANITIZE "${sanitizer_text}" "off (MOECOLLAB_SANITIZE=ON, or a preset: asan, tsan)")
moecollab_on_off(tests MOECOLLAB_TESTS "on" "off (MOECOLLAB_TESTS=OFF)")
moecollab_on_off(benchmarks MOECOLLAB_BENCHMARKS "on" "off (MOECOLLAB_BENCHMARKS=OFF)")
message(STATUS "
  MoECollab ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}
    compiler       ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, for ${native}
    warnings       ${werror}
    sanitizers     ${sanitizers}
    MPI            ${mpi_version} (standard ${MPI_CXX_VERSION})
    OpenMP         ${OpenMP_CXX_VERSION}
    oneDNN         ${dnnl_version}
    HDF5           ${HDF5_VERSION}
    Boost          ${Boost_VERSION_STRING}
    fmt            ${fmt_VERSION}
    JSON           ${nlohmann_json_VERSION}
    xxHash         ${xxhash_version}
    SentencePiece  ${SENTENCEPIECE_LIBRARY}
    zlib           ${ZLIB_VERSION_STRING}
    CUDA           ${MOECOLLAB_CUDA_TEXT}
    tests          ${tests}
    benchmarks     ${benchmarks}
")
