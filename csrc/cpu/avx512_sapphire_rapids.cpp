// AVX-512 again, tuned for Intel's server cores since Sapphire Rapids. level.h knows them by their
// FP16 instructions, which cores before them and AMD's up to Zen 5 lack. The code uses none of
// these instructions. scan_math.h, scan_groups.h and rows.h say what differs.
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
#define CMIMTL_ISA avx512_sapphire_rapids
#define CMIMTL_SAPPHIRE_RAPIDS 1
#define CMIMTL_VECTOR_BYTES 64
#include "dispatch.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
