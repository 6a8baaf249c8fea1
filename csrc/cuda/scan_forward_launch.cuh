// Which instance of the forward scan's kernels runs.
#pragma once

#include "scan_forward.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate>
ForwardKernels forward_instance() {
  ForwardKernels kernels{};
  kernels.scan = {scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>,
                  {kThreads, int(Forward<T, kStates, kShare, kChannels, kStreams, kGate>::kShared)}};
  if constexpr (kChannels == 1) {
    kernels.summary = {scan_forward_summary_kernel<T, kStates, kShare, kStreams>,
                       {kThreads, int(Forward<T, kStates, kShare, 1, kStreams, false, true>::kShared)}};
  }
  return kernels;
}

template <class T, int kStreams, bool kGate>
ForwardKernels forward_kernels(const ScanPlan& plan) {
  if (plan.states == 8 && plan.lanes == 1) return forward_instance<T, 8, 1, 1, kStreams, kGate>();
  if (plan.states == 8) return forward_instance<T, 8, 2, 1, kStreams, kGate>();
  if (plan.channels == 2) return forward_instance<T, 16, 1, 2, kStreams, kGate>();
  if (plan.lanes == 1) return forward_instance<T, 16, 1, 1, kStreams, kGate>();
  if (plan.lanes == 2) return forward_instance<T, 16, 2, 1, kStreams, kGate>();
  return forward_instance<T, 16, 4, 1, kStreams, kGate>();
}

template <class T>
ForwardKernels forward_kernels(const ScanPlan& plan, int streams, bool gate) {
  const auto of = gate ? (streams == 1 ? forward_kernels<T, 1, true> : forward_kernels<T, 2, true>)
                       : (streams == 1 ? forward_kernels<T, 1, false> : forward_kernels<T, 2, false>);
  return of(plan);
}

}  // namespace cmimtl::cuda
