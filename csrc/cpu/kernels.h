// The kernels of one instruction set, as the rest of the library sees them: plain functions on one task at a time, called
// from any thread with scratch memory of their own.
#pragma once

#include <cstdint>

#include "selective_scan.h"

namespace cmimtl::cpu {

// What the backward tasks leave for the sums over them; pointers to the accumulation type. See Partial in scan_backward.h.
struct BackwardParts {
  void *dB, *dC, *dA, *dD, *dbias;
};

// A segment of a scan that is split finer than by lines: chunks first … first + count - 1, in the order of the pass, of one sample, and what
// the phases leave each other, in memory for `most` chunks. See scan_split.h.
struct Split {
  static constexpr int kPhases = 4;
  int64_t batch, first, count, most;
  void* memory;
};

// The convolution, for one accumulation type, float or double.
struct ConvKernels {
  int64_t lane_bytes;  // of the accumulation type

  // A task is lines first … last - 1 of one sample.
  int64_t (*lines)(int64_t dim);
  int64_t (*bytes)(int64_t width, int64_t lines);
  void (*forward)(const ConvForward&, int64_t batch, int64_t first, int64_t last, void* scratch);
  // dweight: (batch, dim, width), dbias: (batch, dim).
  void (*backward)(const ConvBackward&, void* dweight, void* dbias, int64_t batch, int64_t first, int64_t last,
                   void* scratch);
  // Sums parts (samples, size) over samples for elements begin … end - 1.
  void (*reduce_samples)(const void* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, void* out);
};

// For one accumulation type, float or double. Channels are worked on in lines, lines in blocks.
struct Kernels {
  int64_t lane_bytes;                   // of the accumulation type
  int64_t (*lines)(const ScanSizes&);   // of all channels
  int64_t (*blocks)(const ScanSizes&);  // neighbouring lines whose parts of dB and dC are added up
  int64_t most_steps;                   // between two checkpoints

  int64_t (*weights_bytes)(const ScanSizes&);
  void (*prepare)(const ScanForward&, void* weights, int64_t line);

  // A task is lines first … last - 1 of one sample.
  int64_t (*forward_bytes)(DType, int64_t dstate, int64_t lines);  // scratch of one task
  void (*forward)(const ScanForward&, const void* weights, int64_t batch, int64_t first, int64_t last, void* scratch);

  // A task is blocks first … last - 1 of one sample.
  int64_t (*backward_bytes)(const ScanBackward&, int64_t blocks);
  void (*backward)(const ScanBackward&, const void* weights, const BackwardParts&, int64_t batch, int64_t first,
                   int64_t last, void* scratch);
  void (*reduce_maps)(const ScanBackward&, const BackwardParts&, int64_t batch, int64_t step, void* row);
  void (*reduce_weights)(const ScanBackward&, const BackwardParts&, int64_t line);

  // Scans split finer than by lines. Phases come one after the other, the tasks of one side by side, with the scratch memory of a
  // task of one line (forward) or block (backward).
  int64_t (*chunks)(const ScanForward&, int64_t batch);
  int64_t (*forward_split_bytes)(const ScanForward&, const Split&);
  int64_t (*forward_split_tasks)(const ScanForward&, const Split&, int phase);
  void (*forward_split)(const ScanForward&, const void* weights, const Split&, int phase, int64_t task, void* scratch);
  int64_t (*backward_split_bytes)(const ScanBackward&, const Split&);
  int64_t (*backward_split_tasks)(const ScanBackward&, const Split&, int phase);
  void (*backward_split)(const ScanBackward&, const void* weights, const BackwardParts&, const Split&, int phase,
                         int64_t task, void* scratch);

  const ConvKernels* conv;
};

// One of each for float and for double.
namespace baseline {
extern const Kernels kFloat, kDouble;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kFloat, kDouble;
}
// float64 is for checks of gradients and of float32: AVX2's kernels run it on any processor that has more, at half the width
// of AVX-512's vectors, and a quarter of each AVX-512 file's compilation is spared.
namespace avx512 {
extern const Kernels kFloat;
extern const ConvKernels kConvFloat;
using avx2::kDouble;
}  // namespace avx512
namespace avx512_fp16 {
extern const Kernels kFloat;
using avx2::kDouble;
}  // namespace avx512_fp16
#endif

}  // namespace cmimtl::cpu
