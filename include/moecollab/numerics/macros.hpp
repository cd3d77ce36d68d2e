#pragma once

// Marks a formula that a device kernel may call too. Empty for a host compiler.
#if defined(__CUDACC__)
#define MC_HOST_DEVICE __host__ __device__
#else
#define MC_HOST_DEVICE
#endif
