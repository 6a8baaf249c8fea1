// Any machine: SSE2 on x86-64, NEON on AArch64, through vectors of 16 bytes.
#include <cstdint>
#include <initializer_list>

#define CMIMTL_ISA baseline
#define CMIMTL_VECTOR_BYTES 16
#include "dispatch.h"
