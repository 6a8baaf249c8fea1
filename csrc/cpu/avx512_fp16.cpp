// AVX-512 again, tuned for cores that also have its FP16 instructions. None of these instructions is used: they are the
// mark of Intel's server cores since Sapphire Rapids, which cores before them and AMD's up to Zen 5 lack. scan_math.h,
// scan_groups.h and tile.h say what differs.
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
#define CMIMTL_ISA avx512_fp16
#define CMIMTL_AVX512_FP16 1
#define CMIMTL_VECTOR_BYTES 64
#include "table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
