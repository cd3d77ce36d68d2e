# A room is one static library: src/<room>/*.cpp, cpu/*.cpp and, by build, cuda/*.{cpp,cu} or no_cuda/*.cpp. It sees the
# public headers and its own folder.
add_library(moecollab_flags INTERFACE)
target_include_directories(moecollab_flags INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
target_compile_features(moecollab_flags INTERFACE cxx_std_20)
add_library(moecollab_build_flags INTERFACE)
# What "for this processor" means. g++ 12 with AVX-512 stores some constant vectors wrong; matrix products do not suffer from leaving it
# out, since oneDNN makes its own code at run time.
set(MOECOLLAB_NATIVE_FLAGS "")
if(MOECOLLAB_NATIVE)
  set(MOECOLLAB_NATIVE_FLAGS -march=native)
  if(NOT DEFINED MOECOLLAB_AVX512_EXIT)
    try_run(MOECOLLAB_AVX512_EXIT MOECOLLAB_AVX512_COMPILED ${CMAKE_BINARY_DIR}/probes
      ${CMAKE_CURRENT_LIST_DIR}/probes/avx512_constants.cpp COMPILE_DEFINITIONS -O2 -march=native)
  endif()
  if(NOT MOECOLLAB_AVX512_EXIT EQUAL 0 OR (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13))
    list(APPEND MOECOLLAB_NATIVE_FLAGS -mno-avx512f)
  endif()
endif()
set(host_flags -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor $<$<BOOL:${MOECOLLAB_WERROR}>:-Werror>
  ${MOECOLLAB_NATIVE_FLAGS} -fno-math-errno
  -fno-trapping-math)  # nobody looks at floating-point exceptions; with them, selects in exp and the gate do not vectorise
target_compile_options(moecollab_build_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${host_flags}>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;$<$<BOOL:${MOECOLLAB_WERROR}>:-Werror=all-warnings>>")
target_compile_definitions(moecollab_build_flags INTERFACE MC_WITH_CUDA=$<BOOL:${MOECOLLAB_CUDA}>)
if(MOECOLLAB_SANITIZE STREQUAL "THREAD")
  set(sanitizers -fsanitize=thread)
elseif(MOECOLLAB_SANITIZE)
  set(sanitizers -fsanitize=address,undefined)
endif()
if(MOECOLLAB_SANITIZE)
  set(sanitizer_flags -O1 -g ${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(moecollab_build_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${sanitizer_flags}>")
  target_link_options(moecollab_build_flags INTERFACE ${sanitizers})
endif()

# Under emulation the host compiler takes the kernels' sources.
function(moecollab_cuda_sources)
  if(NOT MOECOLLAB_CUDA_EMULATION)
    return()
  endif()
  set(kernels ${ARGN})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas;-Wno-psabi;-Wno-pedantic;-Wno-maybe-uninitialized")
endfunction()

# Of two files that define the same functions, with a library and without, a build leaves one out.
set(MOECOLLAB_LEFT_OUT ops/cpu/gemm_plain.cpp ops/cuda/attention_no_cudnn.cpp)
if(MOECOLLAB_KERNELS_ONLY AND NOT DNNL_LIBRARY)
  list(REMOVE_ITEM MOECOLLAB_LEFT_OUT ops/cpu/gemm_plain.cpp)
  list(APPEND MOECOLLAB_LEFT_OUT ops/cpu/gemm_onednn.cpp)
endif()
if(MOECOLLAB_KERNELS_ONLY AND NOT MOECOLLAB_CUDNN_LIBRARIES)
  list(REMOVE_ITEM MOECOLLAB_LEFT_OUT ops/cuda/attention_no_cudnn.cpp)
  list(APPEND MOECOLLAB_LEFT_OUT ops/cuda/attention_cudnn.cpp ops/cuda/attention_graph.cpp ops/cuda/attention_plans.cpp
    ops/cuda/cudnn_graph.cpp)
endif()
list(TRANSFORM MOECOLLAB_LEFT_OUT PREPEND ${PROJECT_SOURCE_DIR}/src/)

set_property(GLOBAL PROPERTY MOECOLLAB_ROOMS "")
# moecollab_room(name [DEPS rooms...] [PRIVATE third-party targets...])
function(moecollab_room name)
  cmake_parse_arguments(ROOM "" "" "DEPS;PRIVATE" ${ARGN})
  set(folder ${PROJECT_SOURCE_DIR}/src/${name})
  set(patterns ${folder}/*.cpp ${folder}/cpu/*.cpp)
  if(MOECOLLAB_CUDA)
    list(APPEND patterns ${folder}/cuda/*.cpp ${folder}/cuda/*.cu)
  else()
    list(APPEND patterns ${folder}/no_cuda/*.cpp)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${patterns})
  if(sources)
    list(REMOVE_ITEM sources ${MOECOLLAB_LEFT_OUT})
  endif()
  moecollab_cuda_sources(${sources})
  list(TRANSFORM ROOM_DEPS PREPEND moecollab_)
  if(sources)
    add_library(moecollab_${name} STATIC ${sources})
    target_link_libraries(moecollab_${name} PUBLIC moecollab_flags ${ROOM_DEPS} PRIVATE ${ROOM_PRIVATE} $<BUILD_INTERFACE:moecollab_build_flags>)
    target_include_directories(moecollab_${name} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  else()
    add_library(moecollab_${name} INTERFACE)
    target_link_libraries(moecollab_${name} INTERFACE moecollab_flags ${ROOM_DEPS})
  endif()
  set_property(GLOBAL APPEND PROPERTY MOECOLLAB_ROOMS moecollab_${name})
endfunction()
