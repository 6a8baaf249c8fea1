// The kernels of one instruction set, as the rest of the library sees them. Each is a plain
// function that computes one task. Any thread may call it, with scratch memory that no other call
// uses.
#pragma once

#include <cstdint>

#include "selective_scan.h"

namespace cmimtl::cpu {

// Each backward task writes its part of the sums over tasks here. The pointers are to the
// accumulation type; see Partial in scan_backward.h.
struct BackwardParts {
  void *dB, *dC, *dA, *dD, *dbias;
};

// A segment of a scan that goes through phases. It is the chunks first … first + count - 1 of one
// sample, in the order of the pass. `memory`, for `most` chunks, holds what one phase leaves for
// the next. See scan_phases.h.
struct Segment {
  static constexpr int kPhases = 4;
  int64_t batch, first, count, most;
  void* memory;
};

// The convolution, for one accumulation type, float or double.
struct ConvKernels {
  int64_t lane_bytes;  // size of the accumulation type

  // A task is lines first … last - 1 of one sample.
  int64_t (*lines)(int64_t dim);
  int64_t (*bytes)(int64_t width, int64_t lines);
  void (*forward)(const ConvForward&, int64_t batch, int64_t first, int64_t last, void* scratch);
  // dweight: (batch, dim, width), dbias: (batch, dim).
  void (*backward)(const ConvBackward&, void* dweight, void* dbias, int64_t batch, int64_t first, int64_t last,
                   void* scratch);
  // Adds up parts, (samples, size), over the samples, for the elements begin … end - 1.
  void (*reduce_samples)(const void* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, void* out);
};

// The scans, for one accumulation type, float or double. A line is some neighbouring channels,
// which are computed together; a block is some neighbouring lines, whose parts of dB and dC are
// added up before they are stored.
struct Kernels {
  int64_t lane_bytes;                   // size of the accumulation type
  int64_t (*lines)(const ScanSizes&);   // number of lines of all channels
  int64_t (*blocks)(const ScanSizes&);  // number of blocks of all channels
  int64_t most_steps;                   // largest number of steps between two checkpoints

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

  // Scans that go through phases. The phases come one after the other, and the tasks of a phase run
  // side by side. A task has the scratch memory of a task of one line (forward) or of one block
  // (backward).
  int64_t (*chunks)(const ScanForward&, int64_t batch);
  int64_t (*forward_phases_bytes)(const ScanForward&, const Segment&);
  int64_t (*forward_phase_tasks)(const ScanForward&, const Segment&, int phase);
  void (*forward_phase)(const ScanForward&, const void* weights, const Segment&, int phase, int64_t task,
                        void* scratch);
  int64_t (*backward_phases_bytes)(const ScanBackward&, const Segment&);
  int64_t (*backward_phase_tasks)(const ScanBackward&, const Segment&, int phase);
  void (*backward_phase)(const ScanBackward&, const void* weights, const BackwardParts&, const Segment&, int phase,
                         int64_t task, void* scratch);

  const ConvKernels* conv;
};

// Every instruction set has kernels for float and for double.
namespace baseline {
extern const Kernels kFloat, kDouble;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kFloat, kDouble;
}
// float64 is for checks of gradients and of float32: AVX2's kernels run it on any processor that
// has more, at half the width of AVX-512's vectors, and a quarter of each AVX-512 file's
// compilation is spared.
namespace avx512 {
extern const Kernels kFloat;
extern const ConvKernels kConvFloat;
using avx2::kDouble;
}  // namespace avx512
namespace avx512_sapphire_rapids {
extern const Kernels kFloat;
using avx2::kDouble;
}  // namespace avx512_sapphire_rapids
#endif

}  // namespace cmimtl::cpu
