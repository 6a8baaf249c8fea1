// The forward scan: dispatch, and the passes of one that is split in time.
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {

// Pairs of channels change nothing here: they fill the chip, so time is not split, nor without them.
int64_t forward_elements(const ScanSizes& s) {
  return split_elements(s, plan_forward(s, false, warps_to_fill(kMostWarps)));
}

void scan_forward(const ScanForward& p, float* workspace, void* stream) {
  const ScanPlan plan = plan_forward(p.size, channels_in_pairs(p), warps_to_fill(kMostWarps));
  if (plan.blocks(p.size) == 0) return;
  const auto run = p.dtype == DType::kFloat32    ? launch_forward<float>
                   : p.dtype == DType::kBFloat16 ? launch_forward<bfloat16>
                                                 : launch_forward<float16>;
  Split split = make_split(p.size, plan, workspace);
  split.paired_maps = states_in_pairs(p);
  if (plan.segments > 1) {
    split.summary = true;
    run(p, plan, split, stream);
    carry_states(p, split, false, static_cast<const float*>(p.initial_state), static_cast<float*>(p.last_state),
                 stream);
    split.summary = false;
  }
  run(p, plan, split, stream);
}

}  // namespace cmimtl::cuda
