// Which instance of the forward scan's kernels runs.
#pragma once

#include "scan_forward.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate>
ForwardKernels forward_instance() {
  ForwardKernels kernels{};
  kernels.scan = {scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>,
                  {kThreads, int(Forward<T, kStates, kShare, kChannels, kStreams, kGate>::kShared)}};
  if constexpr (kChannels == 1 && !fills_the_chip(kStates, kShare)) {
    kernels.summary = {scan_forward_summary_kernel<T, kStates, kShare, kStreams>,
                       {kThreads, int(Forward<T, kStates, kShare, 1, kStreams, false, true>::kShared)}};
  }
  return kernels;
}

template <class T, int kStreams, bool kGate>
ForwardKernels forward_kernels_of(const ScanPlan& plan) {
  if (plan.states == 8 && plan.lanes == 1) return forward_instance<T, 8, 1, 1, kStreams, kGate>();
  if (plan.states == 8) return forward_instance<T, 8, 2, 1, kStreams, kGate>();
  if (plan.channels == 2) return forward_instance<T, 16, 1, 2, kStreams, kGate>();
  if (plan.lanes == 1) return forward_instance<T, 16, 1, 1, kStreams, kGate>();
  if (plan.lanes == 2) return forward_instance<T, 16, 2, 1, kStreams, kGate>();
  return forward_instance<T, 16, 4, 1, kStreams, kGate>();
}

template <class T, int kStreams>
ForwardKernels forward_kernels(const ScanPlan& plan, bool gate) {
  return gate ? forward_kernels_of<T, kStreams, true>(plan) : forward_kernels_of<T, kStreams, false>(plan);
}

}  // namespace cmimtl::cuda
