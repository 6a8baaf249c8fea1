// Which instance of the backward scan's kernels runs.
#pragma once

#include "scan_backward.cuh"
#include "scan_backward_summary.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams, bool kGate>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  const auto kernel = split.summary ? scan_backward_summary_kernel<T, kStates, kShare, kStreams, kGate>
                                    : scan_backward_kernel<T, kStates, kShare, kStreams, kGate>;
  launch(kernel, dim3(unsigned(plan.blocks(q.forward.size))), dim3(kThreads),
         BackwardShared<kStates, kShare, kStreams, kGate>::bytes(int(plan.lanes)), stream, q, split, partial);
}

template <class T, int kStreams, bool kGate>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  if (plan.states == 8) return launch_backward<T, 8, 1, kStreams, kGate>(q, plan, split, partial, stream);
  if (plan.lanes == 1) return launch_backward<T, 16, 1, kStreams, kGate>(q, plan, split, partial, stream);
  if (plan.lanes == 2) return launch_backward<T, 16, 2, kStreams, kGate>(q, plan, split, partial, stream);
  return launch_backward<T, 16, 4, kStreams, kGate>(q, plan, split, partial, stream);
}

template <class T>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  const bool one = q.forward.streams == 1;
  const auto run = q.forward.z[0].data ? (one ? launch_backward<T, 1, true> : launch_backward<T, 2, true>)
                                       : (one ? launch_backward<T, 1, false> : launch_backward<T, 2, false>);
  run(q, plan, split, partial, stream);
}

}  // namespace cmimtl::cuda
