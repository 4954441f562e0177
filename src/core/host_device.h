// SFA_HOST_DEVICE marks what both the CPU and the GPU call; files without CUDA may include it.
#pragma once

#if defined(__CUDACC__)
#define SFA_HOST_DEVICE __host__ __device__
#else
#define SFA_HOST_DEVICE
#endif
