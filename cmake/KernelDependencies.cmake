# MOECOLLAB_KERNELS_ONLY: what the kernels, their tests and their benchmarks link to, on a machine that may have little
# more than a compiler and the CUDA toolkit. Headers and sources that it lacks come from the folder MOECOLLAB_CARRIED,
# which `jobs/gpu-check --pack` fills elsewhere; NVIDIA's libraries also from wheels of the Python on PATH.
set(MOECOLLAB_CARRIED "" CACHE PATH "Kernels only: folder with include/Random123 and googletest, where they are not installed")
if(MOECOLLAB_CUDA_EMULATION OR MOECOLLAB_WITH_CUDA STREQUAL "OFF")
  message(FATAL_ERROR "MOECOLLAB_KERNELS_ONLY is for CUDA kernels compiled by nvcc: it excludes MOECOLLAB_CUDA_EMULATION=ON "
    "and MOECOLLAB_WITH_CUDA=OFF.")
endif()
set(MOECOLLAB_WITH_CUDA ON)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_path(RANDOM123_INCLUDE_DIR Random123/philox.h HINTS ${MOECOLLAB_CARRIED}/include)
if(NOT RANDOM123_INCLUDE_DIR)
  message(FATAL_ERROR "Random123 (headers) not found. Install it, or carry it: `jobs/gpu-check --pack DIR` on a machine that "
    "has it, then -DMOECOLLAB_CARRIED=DIR here.")
endif()
find_path(DNNL_INCLUDE_DIR dnnl.hpp)
find_library(DNNL_LIBRARY dnnl)
if(NOT DNNL_INCLUDE_DIR OR NOT DNNL_LIBRARY)
  set(DNNL_LIBRARY "")
endif()

find_package(Python3 3.9 QUIET COMPONENTS Interpreter)
set(wheel_folders "")
if(Python3_FOUND)
  execute_process(COMMAND ${Python3_EXECUTABLE} -c
      "import glob, sys; print(';'.join(d for p in sys.path if p for d in sorted(glob.glob(p + '/nvidia/*/'))))"
    OUTPUT_VARIABLE wheel_folders OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
set(MOECOLLAB_WHEEL_INCLUDES ${wheel_folders})
list(TRANSFORM MOECOLLAB_WHEEL_INCLUDES APPEND include)
set(MOECOLLAB_WHEEL_LIBRARIES ${wheel_folders})
list(TRANSFORM MOECOLLAB_WHEEL_LIBRARIES APPEND lib)
