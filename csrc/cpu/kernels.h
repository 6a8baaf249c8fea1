// The kernels of one instruction set, as the rest of the library sees them: plain functions on one task at a time, called
// from any thread with scratch memory of their own.
#pragma once

#include <cstdint>

#include "selective_scan.h"

namespace cmimtl::cpu {

// For one accumulation type, float or double (T in the tasks' comments). Pointers to parts are T*.
struct Kernels {
  // A task is blocks first … last - 1 of one sample.
  int64_t (*scan_blocks)(const ScanSizes&);                  // blocks of one sample
  int64_t (*forward_bytes)(int64_t dstate, int64_t blocks);  // scratch of one task
  void (*forward)(const ScanForward&, int64_t batch, int64_t first, int64_t last, void* scratch);

  int64_t (*backward_bytes)(int64_t dstate, int64_t blocks);
  // dB, dC: (blocks, batch, steps, dstate); dA: (batch, dim, dstate); dD, dbias: (batch, dim).
  void (*backward)(const ScanBackward&, void* dB, void* dC, void* dA, void* dD, void* dbias, int64_t batch,
                   int64_t first, int64_t last, void* scratch);
  void (*reduce_maps)(const ScanBackward&, void* dB, void* dC, int64_t batch, int64_t step, void* scratch);
  // Sums parts (samples, size) over samples for elements begin … end - 1.
  void (*reduce_samples)(const void* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, void* out);

  int64_t (*conv_blocks)(int64_t dim);
  int64_t (*conv_bytes)(int64_t width);  // here a task is one block of one sample
  void (*conv_forward)(const ConvForward&, int64_t batch, int64_t block, void* scratch);
  // dweight: (batch, dim, width), dbias: (batch, dim).
  void (*conv_backward)(const ConvBackward&, void* dweight, void* dbias, int64_t batch, int64_t block, void* scratch);
};

// One of each for float and for double.
namespace baseline {
extern const Kernels kFloat, kDouble;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kFloat, kDouble;
}
namespace avx512 {
extern const Kernels kFloat, kDouble;
}
#endif

}  // namespace cmimtl::cpu
