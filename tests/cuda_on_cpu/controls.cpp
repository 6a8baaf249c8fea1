// What tests set from Python, by ctypes.
#include "simt.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void simt_set_seed(unsigned seed) { simt::set_seed(seed); }
EXPORTED void simt_set_warps_to_fill(int64_t warps) { simt::warps_to_fill = warps; }
