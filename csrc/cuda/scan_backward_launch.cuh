// Which instance of the backward scan's kernels runs.
#pragma once

#include "scan_backward.cuh"
#include "scan_backward_summary.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams, bool kGate>
BackwardKernels backward_instance(const ScanPlan& plan) {
  return {scan_backward_kernel<T, kStates, kShare, kStreams, kGate>,
          scan_backward_summary_kernel<T, kStates, kShare, kStreams, kGate>,
          {kThreads, int(BackwardShared<kStates, kShare, kStreams, kGate>::bytes(plan.lanes))}};
}

template <class T, int kStreams, bool kGate>
BackwardKernels backward_kernels_of(const ScanPlan& plan) {
  if (plan.states == 8) return backward_instance<T, 8, 1, kStreams, kGate>(plan);
  if (plan.lanes == 1) return backward_instance<T, 16, 1, kStreams, kGate>(plan);
  if (plan.lanes == 2) return backward_instance<T, 16, 2, kStreams, kGate>(plan);
  return backward_instance<T, 16, 4, kStreams, kGate>(plan);
}

template <class T, int kStreams>
BackwardKernels backward_kernels(const ScanPlan& plan, bool gate) {
  return gate ? backward_kernels_of<T, kStreams, true>(plan) : backward_kernels_of<T, kStreams, false>(plan);
}

}  // namespace cmimtl::cuda
