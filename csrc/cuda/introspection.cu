// The introspection of the built library: what it tells of its scans, without a device. It is a C
// interface for the static report and for tests.
#include <string>

#include "device.h"
#include "kernels.h"
#include "traffic.h"

#define CMIMTL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace cmimtl;
using namespace cmimtl::cuda;

ScanPlan plan_of(bool backward, const ScanSizes& s) {
  // The tensors have no gaps, so pairs of channels are aligned words where a group has an even
  // number of channels.
  return backward ? plan_backward(s) : plan_forward(s, s.dim / s.ngroups % 2 == 0, warps_to_fill(kMostWarps));
}

}  // namespace

// The threads and the shared memory of a block of a kernel. Its threads hold `states` states of
// each of `channels` channels, and a channel has channel_lanes lanes.
CMIMTL_EXPORT void cmimtl_cuda_scan_launch(bool backward, int dtype, int streams, bool gate, int states,
                                           int channel_lanes, int channels, int* threads, int* shared_bytes) {
  ScanPlan plan{};
  plan.states = states, plan.channel_lanes = channel_lanes, plan.channels = channels;
  const auto launch = backward ? scan_backward_launch : scan_forward_launch;
  const LaunchSizes sizes = launch(DType(dtype), plan, streams, gate);
  *threads = sizes.threads, *shared_bytes = sizes.shared_bytes;
}

// The number of steps that a pass's loop takes at a time.
CMIMTL_EXPORT int cmimtl_cuda_scan_steps(bool backward) { return backward ? kChunk : kStage; }

// The largest dstate on a device whose blocks get so many bytes of shared memory.
CMIMTL_EXPORT int64_t cmimtl_cuda_most_states(int64_t shared_bytes) { return most_states(shared_bytes); }

// The table of traffic.h as comma-separated text, whose first line names the columns. The text is
// valid until the thread's next call.
CMIMTL_EXPORT const char* cmimtl_cuda_scan_traffic(bool backward, int64_t batch, int64_t length, int64_t dim,
                                                   int64_t dstate, int64_t ngroups, int64_t checkpoint_every,
                                                   ScanOptions options) {
  const ScanSizes sizes = scan_sizes(options.streams, batch, length, dim, dstate, ngroups, checkpoint_every);
  const auto traffic = backward ? backward_traffic : forward_traffic;
  thread_local std::string text;
  text = "tensor,read,written,read_by_blocks,again,least\n";
  for (const Moved& m : traffic(sizes, plan_of(backward, sizes), options)) {
    text += m.tensor;
    for (const int64_t bytes : {m.read, m.written, m.read_by_blocks, m.again, m.least})
      text += ',' + std::to_string(bytes);
    text += '\n';
  }
  return text.c_str();
}
