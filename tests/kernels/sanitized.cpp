// What sanitized.py adds to the library: the number of the fault that is awake, and something in
// place of the instruction sets that it leaves out, which this processor does not choose.
#include <cstdlib>

#include "kernels.h"
#include "planted.h"

const int simt::awake = std::getenv("CMIMTL_PLANTED_FAULT") ? std::atoi(std::getenv("CMIMTL_PLANTED_FAULT")) : 0;

#if defined(__x86_64__)
namespace cmimtl::cpu {
#if !WITH_AVX512
const Kernels avx512::kFloat{};
#endif
const Kernels avx512_sapphire_rapids::kFloat{};
}  // namespace cmimtl::cpu
#endif
