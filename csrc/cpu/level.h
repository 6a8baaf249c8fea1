// The choice of the instruction set, once in a process.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

namespace cmimtl::cpu {

struct Level {
  const char* name;
  const Kernels *single, *wide;
  bool runs;       // on this processor
  bool preferred;  // to the levels after it, where it runs
};

#if defined(__x86_64__)
// Whether the processor has AVX-512's FP16 instructions, the mark of the cores of
// avx512_sapphire_rapids.cpp. The processor itself is asked, because compilers before GCC 12 and
// clang 14 do not know the feature's name.
inline bool has_fp16_instructions() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 23 & 1);
}
#endif

// Where CMIMTL_CPU_CAPABILITY names a level, that level runs, or there is an error. Without it the
// processor's best level runs, unless ATEN_CPU_CAPABILITY, which sets the level of PyTorch's own
// kernels, names a lower one. That variable may name more than the processor has, which PyTorch
// believes; here it only lowers the level.
inline Level choose_level() {
  const auto is = [](const char* value, const char* name) { return value && std::string(value) == name; };
  const char *wanted = std::getenv("CMIMTL_CPU_CAPABILITY"), *cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (is(wanted, "")) wanted = nullptr;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool to_avx2 = !is(cap, "default"), to_avx512 = to_avx2 && !is(cap, "avx2");
  const bool to_sapphire_rapids = to_avx512 && !is(cap, "avx512") && has_fp16_instructions();
#endif
  const Level levels[] = {
#if defined(__x86_64__)
      // Its code has no instruction that other AVX-512 cores lack, so where it is asked for by name
      // it runs on all.
      {.name = "avx512_sapphire_rapids",
       .single = &avx512_sapphire_rapids::kFloat,
       .wide = &avx512_sapphire_rapids::kDouble,
       .runs = avx512,
       .preferred = to_sapphire_rapids},
      {.name = "avx512", .single = &avx512::kFloat, .wide = &avx512::kDouble, .runs = avx512, .preferred = to_avx512},
      {.name = "avx2", .single = &avx2::kFloat, .wide = &avx2::kDouble, .runs = avx2, .preferred = to_avx2},
#endif
      {.name = "baseline", .single = &baseline::kFloat, .wide = &baseline::kDouble, .runs = true, .preferred = true},
  };
  std::string names;
  for (const Level& level : levels) {
    if (!level.runs) continue;
    if (wanted ? is(wanted, level.name) : level.preferred) return level;
    names += (names.empty() ? "" : ", ") + std::string(level.name);
  }
  throw std::runtime_error("cmimtl: CMIMTL_CPU_CAPABILITY must be one of what this processor has (" + names +
                           "), got " + wanted + "; unset it for the best of them");
}

}  // namespace cmimtl::cpu
