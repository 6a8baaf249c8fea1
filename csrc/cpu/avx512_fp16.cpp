// AVX-512 again, for cores that have its FP16 instructions as well, none of which is used: they tell Intel's server cores since
// Sapphire Rapids from those before and from AMD's up to Zen 5. See scan_math.h, scan_groups.h and tile.h for
// what differs.
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
