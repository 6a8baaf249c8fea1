// Fills the structs of functions of kernels.h for the instruction set of the .cpp that includes
// this file.
#pragma once

#if !CMIMTL_SAPPHIRE_RAPIDS
#include "conv.h"
#endif
#include "scan_phases.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Calls f with a value of the storage type; float64 storage goes with float64 arithmetic, and only
// with it.
template <class T, class F>
auto with_storage(DType dtype, F f) {
  if constexpr (sizeof(T) == 8) {
    return f(double());
  } else {
    switch (dtype) {
      case DType::kBFloat16:
        return f(BFloat16());
      case DType::kFloat16:
        return f(Float16());
      default:
        return f(float());
    }
  }
}

template <class T>
Partial<T> partial(const BackwardParts& p) {
  return {.dB = static_cast<T*>(p.dB),
          .dC = static_cast<T*>(p.dC),
          .dA = static_cast<T*>(p.dA),
          .dD = static_cast<T*>(p.dD),
          .dbias = static_cast<T*>(p.dbias)};
}

template <class T>
constexpr Kernels kernels(const ConvKernels* conv) {
  Kernels k{};
  k.conv = conv;
  k.lane_bytes = sizeof(T);
  k.lines = [](const ScanSizes& s) { return s.ngroups * lines_per_group<T>(s); };
  k.blocks = [](const ScanSizes& s) { return block_count<T>(s); };
  k.most_steps = kSteps;
  k.weights_bytes = [](const ScanSizes& s) { return Weights<T>::bytes(s); };
  k.prepare = [](const ScanForward& p, void* weights, int64_t line) {
    prepare_weights(p, Weights<T>(weights, p.size), line_at<T>(p.size, line));
  };
  k.forward_bytes = [](DType dtype, int64_t dstate, int64_t lines) {
    return with_storage<T>(dtype, [&](auto s) { return bytes_of<ForwardScratch<decltype(s)>>(dstate, lines); });
  };
  k.forward = [](const ScanForward& p, const void* weights, int64_t batch, int64_t first, int64_t last, void* scratch) {
    with_storage<T>(p.dtype, [&](auto s) { forward_task<decltype(s)>(p, weights, batch, first, last, scratch); });
    order_stores();
  };
  k.backward_bytes = [](const ScanBackward& q, int64_t blocks) {
    const ScanSizes& s = q.forward.size;
    return with_storage<T>(q.forward.dtype, [&](auto v) {
      return bytes_of<BackwardScratch<decltype(v)>>(s.dstate, blocks * lines_of_block<T>(s));
    });
  };
  k.backward = [](const ScanBackward& q, const void* weights, const BackwardParts& parts, int64_t batch, int64_t first,
                  int64_t last, void* scratch) {
    with_storage<T>(q.forward.dtype, [&](auto s) {
      backward_task<decltype(s)>(q, weights, partial<T>(parts), batch, first, last, scratch);
    });
    order_stores();
  };
  k.reduce_maps = [](const ScanBackward& q, const BackwardParts& parts, int64_t batch, int64_t step, void* row) {
    with_storage<T>(q.forward.dtype,
                    [&](auto s) { reduce_maps<decltype(s)>(q, partial<T>(parts), batch, step, static_cast<T*>(row)); });
  };
  k.reduce_weights = [](const ScanBackward& q, const BackwardParts& parts, int64_t line) {
    reduce_weights(q, partial<T>(parts), line);
  };
  k.chunks = [](const ScanForward& p, int64_t batch) {
    return ceil_div(valid_length(p, batch) * p.streams, chunk_steps(p.size));
  };
  k.forward_phases_bytes = [](const ScanForward& p, const Segment& segment) {
    return with_storage<T>(p.dtype, [&](auto s) { return ForwardPhases<decltype(s)>::bytes(p, segment); });
  };
  k.forward_phase_tasks = [](const ScanForward& p, const Segment& segment, int phase) {
    return with_storage<T>(p.dtype,
                           [&](auto s) { return ForwardPhases<decltype(s)>(p, nullptr, segment).tasks(phase); });
  };
  k.forward_phase = [](const ScanForward& p, const void* weights, const Segment& segment, int phase, int64_t task,
                       void* scratch) {
    with_storage<T>(p.dtype,
                    [&](auto s) { ForwardPhases<decltype(s)>(p, weights, segment).run(phase, task, scratch); });
    order_stores();
  };
  k.backward_phases_bytes = [](const ScanBackward& q, const Segment& segment) {
    return with_storage<T>(q.forward.dtype, [&](auto s) { return BackwardPhases<decltype(s)>::bytes(q, segment); });
  };
  k.backward_phase_tasks = [](const ScanBackward& q, const Segment& segment, int phase) {
    return with_storage<T>(q.forward.dtype,
                           [&](auto s) { return BackwardPhases<decltype(s)>(q, nullptr, {}, segment).tasks(phase); });
  };
  k.backward_phase = [](const ScanBackward& q, const void* weights, const BackwardParts& parts, const Segment& segment,
                        int phase, int64_t task, void* scratch) {
    with_storage<T>(q.forward.dtype, [&](auto s) {
      BackwardPhases<decltype(s)>(q, weights, partial<T>(parts), segment).run(phase, task, scratch);
    });
    order_stores();
  };
  return k;
}

#if CMIMTL_SAPPHIRE_RAPIDS
// For these cores only the scans of float differ. All else is avx512's, which saves a sixth of the
// compilation.
const Kernels kFloat = kernels<float>(&avx512::kConvFloat);
#else
template <class T>
constexpr ConvKernels conv_kernels() {
  ConvKernels k{};
  k.lane_bytes = sizeof(T);
  k.lines = [](int64_t dim) { return ceil_div(dim, Simd<T>::kLine); };
  // No storage type is wider than T.
  k.bytes = [](int64_t width, int64_t lines) { return bytes_of<ConvScratch<T>>(width, lines); };
  k.forward = [](const ConvForward& p, int64_t batch, int64_t first, int64_t last, void* scratch) {
    with_storage<T>(p.dtype, [&](auto s) {
      using S = decltype(s);
      auto* task = p.width == kCommonWidth ? conv_forward_task<kCommonWidth, S> : conv_forward_task<0, S>;
      task(p, batch, first, last, scratch);
    });
  };
  k.backward = [](const ConvBackward& q, void* dweight, void* dbias, int64_t batch, int64_t first, int64_t last,
                  void* scratch) {
    with_storage<T>(q.forward.dtype, [&](auto s) {
      using S = decltype(s);
      auto* task = q.forward.width == kCommonWidth ? conv_backward_task<kCommonWidth, S> : conv_backward_task<0, S>;
      task(q, static_cast<T*>(dweight), static_cast<T*>(dbias), batch, first, last, scratch);
    });
  };
  k.reduce_samples = [](const void* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, void* out) {
    reduce_samples<T>(static_cast<const T*>(parts), samples, size, begin, end, static_cast<T*>(out));
  };
  return k;
}

extern const ConvKernels kConvFloat;
const ConvKernels kConvFloat = conv_kernels<float>();
const Kernels kFloat = kernels<float>(&kConvFloat);
#endif

#if CMIMTL_VECTOR_BYTES < 64  // see kernels.h
const ConvKernels kConvDouble = conv_kernels<double>();
const Kernels kDouble = kernels<double>(&kConvDouble);
#endif

}  // namespace cmimtl::cpu::CMIMTL_ISA
