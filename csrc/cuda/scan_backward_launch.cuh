// The choice of the instance of the backward scan's kernels that runs.
#pragma once

#include "scan_backward.cuh"
#include "scan_backward_summary.cuh"

namespace cmimtl::cuda {

template <int kStates, int kShare, int kStreams, bool kGate>
LaunchSizes backward_sizes(const ScanPlan& plan) {
  return {.threads = kThreads,
          .shared_bytes = int(BackwardShared<kStates, kShare, kStreams, kGate>::bytes(plan.channel_lanes))};
}

template <class T, int kStates, int kShare, int kStreams>
BackwardKernels backward_instance(const ScanPlan& plan, bool gate) {
  const auto with_gate = backward_sizes<kStates, kShare, kStreams, true>(plan);
  BackwardKernels kernels{
      .scan = {.run = scan_backward_kernel<T, kStates, kShare, kStreams, true>, .sizes = with_gate},
      .summary = {.run = scan_backward_summary_kernel<T, kStates, kShare, kStreams>, .sizes = with_gate}};
  if constexpr (Backward<T, kStates, kShare, kStreams, true>::kKnown) {
    if (!gate)
      kernels.scan = {.run = scan_backward_kernel<T, kStates, kShare, kStreams, false>,
                      .sizes = backward_sizes<kStates, kShare, kStreams, false>(plan)};
  }
  return kernels;
}

template <class T, int kStreams>
BackwardKernels backward_kernels(const ScanPlan& plan, bool gate) {
  if (plan.states == 8) return backward_instance<T, 8, 1, kStreams>(plan, gate);
  if (plan.channel_lanes == 1) return backward_instance<T, 16, 1, kStreams>(plan, gate);
  if (plan.channel_lanes == 2) return backward_instance<T, 16, 2, kStreams>(plan, gate);
  return backward_instance<T, 16, 4, kStreams>(plan, gate);
}

}  // namespace cmimtl::cuda
