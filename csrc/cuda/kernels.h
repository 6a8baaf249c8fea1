// The entry points of the CUDA kernels, which bindings.cpp calls. This file is plain C++. `stream`
// is a cudaStream_t. The functions throw std::runtime_error where the device refuses a launch or to
// clear memory.
#pragma once

#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// The workspace has forward_elements(p.size) floats.
int64_t forward_elements(const ScanSizes& s);
void scan_forward(const ScanForward& p, float* workspace, void* stream);

// The workspace has backward_elements(q.forward.size) floats.
int64_t backward_elements(const ScanSizes& s);
void scan_backward(const ScanBackward& q, float* workspace, void* stream);

// What the kernel that the plan, the streams and the gate choose is launched with.
LaunchSizes scan_forward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate);
LaunchSizes scan_backward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate);

void conv_forward(const ConvForward& p, void* stream);

// The workspace has conv_backward_elements(q.forward) floats.
int64_t conv_backward_elements(const ConvForward& p);
void conv_backward(const ConvBackward& q, float* workspace, void* stream);

}  // namespace cmimtl::cuda
