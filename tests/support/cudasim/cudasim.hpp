// The CUDA device language for a host compiler, for tests only: launch.cuh includes this where nvcc is not
// the compiler. README.md says what is emulated, how, and what is not.
#pragma once
#ifdef __CUDACC__
#error "cudasim.hpp is for host compilers; nvcc compiles kernels for the device"
#endif

#include <cuda_bf16.h>
#include <cuda_runtime.h>

// The toolkit's host_defines.h turns these into attributes that a host compiler warns about.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // works; MC_SHARED also gives red zones, poison and a check of the size
#define __constant__ static
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)

#include "device_functions.hpp"
#include "emulator.hpp"
