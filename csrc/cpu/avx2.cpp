// The kernels for AVX2 with FMA: dispatch.h includes all of them, and scan_math.h has their exp2.
// Every header of the system comes before the target switch, so that none of its
// inline functions is compiled for AVX2 and then chosen by the linker for everybody.
#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define CMIMTL_ISA avx2
#define CMIMTL_VECTOR_BYTES 32
#include "dispatch.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
