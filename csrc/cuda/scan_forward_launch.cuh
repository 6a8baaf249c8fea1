// The choice of the instance of the forward scan's kernels that runs.
#pragma once

#include "scan_forward.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate>
ForwardKernels forward_instance() {
  ForwardKernels kernels{};
  kernels.scan = {.run = scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>,
                  .sizes = {.threads = kThreads,
                            .shared_bytes = int(Forward<T, kStates, kShare, kChannels, kStreams, kGate>::kShared)}};
  if constexpr (kChannels == 1 && !fills_the_gpu(kStates, kShare)) {
    kernels.summary = {.run = scan_forward_summary_kernel<T, kStates, kShare, kStreams>,
                       .sizes = {.threads = kThreads,
                                 .shared_bytes = int(Forward<T, kStates, kShare, 1, kStreams, false, true>::kShared)}};
  }
  return kernels;
}

template <class T, int kStates, int kShare, int kChannels, int kStreams>
ForwardKernels forward_kernels_of(bool gate) {
  if constexpr (Forward<T, kStates, kShare, kChannels, kStreams, true>::kKnown) {
    if (!gate) return forward_instance<T, kStates, kShare, kChannels, kStreams, false>();
  }
  return forward_instance<T, kStates, kShare, kChannels, kStreams, true>();
}

template <class T, int kStreams>
ForwardKernels forward_kernels(const ScanPlan& plan, bool gate) {
  if (plan.states == 8 && plan.channel_lanes == 1) return forward_kernels_of<T, 8, 1, 1, kStreams>(gate);
  if (plan.states == 8) return forward_kernels_of<T, 8, 2, 1, kStreams>(gate);
  if (plan.channels == 2) return forward_kernels_of<T, 16, 1, 2, kStreams>(gate);
  if (plan.channel_lanes == 1) return forward_kernels_of<T, 16, 1, 1, kStreams>(gate);
  if (plan.channel_lanes == 2) return forward_kernels_of<T, 16, 2, 1, kStreams>(gate);
  return forward_kernels_of<T, 16, 4, 1, kStreams>(gate);
}

}  // namespace cmimtl::cuda
