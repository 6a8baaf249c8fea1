// What sanitized.py adds to the library: the number of the fault that is awake, and something in
// place of the instruction sets that it leaves out, which the processes do not choose.
#include <cstdlib>

#include "kernels.h"
#include "planted.h"

const int simt::awake = std::getenv("CMIMTL_PLANTED_FAULT") ? std::atoi(std::getenv("CMIMTL_PLANTED_FAULT")) : 0;

namespace cmimtl::cpu {
#if !WITH_BASELINE
// The library asks it for the steps between two checkpoints.
const Kernels baseline::kFloat{.most_steps = 16}, baseline::kDouble{};
#endif
#if defined(__x86_64__)
#if WITH_BASELINE
const Kernels avx2::kFloat{}, avx2::kDouble{};
#endif
#if !WITH_AVX512
const Kernels avx512::kFloat{};
#endif
const Kernels avx512_sapphire_rapids::kFloat{};
#endif
}  // namespace cmimtl::cpu
