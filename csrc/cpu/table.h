// Fills the table of kernels.h for the including .cpp's instruction set.
#pragma once

#include "conv.h"
#include "kernels.h"
#include "scan_backward.h"

namespace cmimtl::cpu::CMIMTL_ISA {

template <class T>
constexpr Kernels table() {
  return {
      [](const ScanSizes& s) { return block_count(s); },
      [](int64_t dstate, int64_t blocks) { return ForwardScratch<T>::bytes(dstate, blocks); },
      [](const ScanForward& p, int64_t batch, int64_t first, int64_t last, void* scratch) {
        forward_task<T>(p, Task{batch, first, last}, scratch);
      },
      [](int64_t dstate, int64_t blocks) { return BackwardScratch<T>::bytes(dstate, blocks); },
      [](const ScanBackward& q, void* dB, void* dC, void* dA, void* dD, void* dbias, int64_t batch, int64_t first,
         int64_t last, void* scratch) {
        const Partial<T> partial{static_cast<T*>(dB), static_cast<T*>(dC), static_cast<T*>(dA), static_cast<T*>(dD),
                                 static_cast<T*>(dbias)};
        backward_task<T>(q, partial, Task{batch, first, last}, scratch);
      },
      [](const ScanBackward& q, void* dB, void* dC, int64_t batch, int64_t step, void* scratch) {
        const Partial<T> partial{static_cast<T*>(dB), static_cast<T*>(dC), nullptr, nullptr, nullptr};
        reduce_maps<T>(q, partial, batch, step, static_cast<T*>(scratch));
      },
      [](const void* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, void* out) {
        reduce_samples<T>(static_cast<const T*>(parts), samples, size, begin, end, static_cast<T*>(out));
      },
      [](int64_t dim) { return (dim + kChannels - 1) / kChannels; },
      [](int64_t width) { return ConvScratch<T>::bytes(width); },
      [](const ConvForward& p, int64_t batch, int64_t block, void* scratch) {
        conv_forward_task<T>(p, batch, block, scratch);
      },
      [](const ConvBackward& q, void* dweight, void* dbias, int64_t batch, int64_t block, void* scratch) {
        conv_backward_task<T>(q, static_cast<T*>(dweight), static_cast<T*>(dbias), batch, block, scratch);
      },
  };
}

const Kernels kFloat = table<float>(), kDouble = table<double>();

}  // namespace cmimtl::cpu::CMIMTL_ISA
