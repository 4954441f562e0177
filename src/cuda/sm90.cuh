// Everything that a kernel for sm_90a needs beyond CUDA C++: barriers, tensor TMA, warpgroup matrix products, exp2.
#pragma once

#include "cuda/exp2.cuh"
#include "cuda/sm90_barrier.cuh"
#include "cuda/sm90_tma.cuh"
#include "cuda/sm90_wgmma.cuh"
