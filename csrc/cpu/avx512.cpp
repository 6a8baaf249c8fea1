// AVX-512 (F, BW, DQ, VL). Every header of the system comes before the target switch, so that none
// of its inline functions is compiled for AVX-512 and then chosen by the linker for everybody.
#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define CMIMTL_ISA avx512
#define CMIMTL_VECTOR_BYTES 64
#include "dispatch.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
