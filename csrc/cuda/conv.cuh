// The depthwise causal convolution with bias and SiLU, forward and backward. A thread goes along
// one channel for a tile of steps, and keeps the last inputs in registers. Memory bounds both
// passes: an element in float32 is 8 bytes and 12 instructions.
#pragma once

#include "conv.h"
#include "device.h"
#include "plan.h"
#include "selective_scan.h"
#include "step_math.cuh"
#include "strided_pointer.cuh"

namespace cmimtl::cuda {

constexpr int kConvGroup = 8;  // steps whose loads are in flight together
// The width of Mamba's convolution. Other widths are padded to 8 or kMostTaps, as the added taps
// take less time than the memory does.
constexpr int kCommonTaps = 4;

// The convolution of one channel of one sample, for the steps of one tile, in the order of
// processing.
template <class T, int kWidth>
struct Conv {
  static constexpr int kBefore = kWidth - 1;  // a step depends on so many steps before it
  static constexpr bool kExact = kWidth == kCommonTaps;
  const ConvForward& p;
  int64_t sample, tile, channel, valid;
  bool live;
  int unused;  // the number of leading taps that only the padded weights have
  float weight[kWidth], bias;

  __device__ Conv(const ConvForward& p, int64_t steps_of_tile) : p(p), unused(kExact ? 0 : kWidth - int(p.width)) {
    const int64_t channels = (p.dim + kThreads - 1) / kThreads, tiles = (p.length + steps_of_tile - 1) / steps_of_tile;
    channel = int64_t(blockIdx.x % channels) * kThreads + threadIdx.x;
    live = channel < p.dim;
    tile = blockIdx.x / channels % tiles;
    sample = blockIdx.x / channels / tiles;
    if (!live) return;
    valid = valid_length(p.lengths, p.length, sample);
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      weight[k] = k < unused ? 0.0f : static_cast<const float*>(p.weight)[channel * p.width + k - unused];
    bias = p.bias ? static_cast<const float*>(p.bias)[channel] : 0.0f;
  }

  // A pointer into any tensor of the op, at processed step j.
  template <class U, class Tensor>
  __device__ StridedPointer<U> pointer(const Tensor& x, int64_t j) const {
    return StridedPointer<U>(x, sample, channel, p.reverse ? valid - 1 - j : j, p.reverse);
  }
  // These fill x, which holds the kBefore inputs before a group of steps and then those of the
  // group. start() loads the inputs before step j, load() those of the group, and shift() makes the
  // last inputs those before the next group.
  __device__ void start(int64_t j, float (&x)[kBefore + kConvGroup]) const {
    const StridedPointer<const T> from = pointer<const T>(p.x, j);
#pragma unroll
    for (int i = 0; i < kBefore; ++i) x[i] = j - kBefore + i >= 0 && i >= unused ? to_float(from[i - kBefore]) : 0.0f;
  }
  __device__ void load(const StridedPointer<const T>& from, int left, float (&x)[kBefore + kConvGroup]) const {
#pragma unroll
    for (int i = 0; i < kConvGroup; ++i) x[kBefore + i] = i < left ? to_float(from[i]) : 0.0f;
  }
  __device__ static void shift(float (&x)[kBefore + kConvGroup]) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i) x[i] = x[i + kConvGroup];
  }
  // Whether the op has this tap. A padded tap must not be multiplied, or a NaN would reach steps
  // that do not see it.
  __device__ bool used(int k) const { return kExact || k >= unused; }

  // The output of the i-th step of a group, before SiLU.
  __device__ float sum(const float (&x)[kBefore + kConvGroup], int i) const {
    float y = bias;
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (used(k)) y = fmaf(weight[k], x[i + k], y);
    return y;
  }

  __device__ void forward() const {
    if (!live) return;
    const int64_t begin = tile * kConvForwardSteps, end = min(begin + kConvForwardSteps, p.length);
    clear_steps<T>(p.out, sample, channel, max(begin, valid), end);
    int left = int(min(end, valid) - begin);
    if (left <= 0) return;
    StridedPointer<const T> from = pointer<const T>(p.x, begin);
    StridedPointer<T> to = pointer<T>(p.out, begin);
    float x[kBefore + kConvGroup];
    start(begin, x);
#pragma unroll 1
    for (; left > 0; left -= kConvGroup) {
      load(from, left, x);
      float y[kConvGroup];
#pragma unroll
      for (int i = 0; i < kConvGroup; ++i) y[i] = sum(x, i);
      if (p.silu) {
#pragma unroll
        for (int i = 0; i < kConvGroup; ++i) {
          const float e[1] = {exp_of_minus_magnitude(y[i])};
          float r[1];
          reciprocals(e, r);
          y[i] *= sigmoid(y[i], e[0], r[0]);
        }
      }
#pragma unroll
      for (int i = 0; i < kConvGroup; ++i)
        if (i < left) to[i] = from_float<T>(y[i]);
      shift(x);
      from.advance(kConvGroup), to.advance(kConvGroup);
    }
  }

  // As dx[s] = sum_k weight[k] dy[s + width - 1 - k], a tile reads dy of kBefore steps more than it
  // writes dx of.
  __device__ void backward(const ConvBackward& q, float* dweight_parts, float* dbias_parts) const {
    if (!live) return;
    const int64_t begin = tile * kConvBackwardSteps, end = min(begin + kConvBackwardSteps, p.length);
    clear_steps<T>(q.dx, sample, channel, max(begin, valid), end);
    float dweight[kWidth], dbias = 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) dweight[k] = 0.0f;

    int own = int(min(end, valid) - begin);  // the number of steps whose dx this thread writes
    if (own > 0) {
      // The number of steps whose dy it needs.
      int left = int(min(begin + own + kBefore, valid) - begin);
      StridedPointer<const T> from = pointer<const T>(p.x, begin), dout = pointer<const T>(q.dout, begin);
      StridedPointer<T> to = pointer<T>(q.dx, begin);
      to.advance(-kBefore);
      float x[kBefore + kConvGroup], dy[kBefore + kConvGroup];
      start(begin, x);
#pragma unroll
      for (int i = 0; i < kBefore; ++i) dy[i] = 0.0f;  // never used: another tile writes their dx
#pragma unroll 1
      for (int at = -kBefore; at < own; at += kConvGroup) {  // the first step of the group's dx
        load(from, left, x);
        load(dout, left, dy);
        if (p.silu) {
#pragma unroll
          for (int i = 0; i < kConvGroup; ++i) {
            const float y = sum(x, i), e[1] = {exp_of_minus_magnitude(y)};
            float r[1];
            reciprocals(e, r);
            const float s = sigmoid(y, e[0], r[0]), one_minus_s = (y < 0.0f ? 1.0f : e[0]) * r[0];
            dy[kBefore + i] *= fmaf(y * s, one_minus_s, s);
          }
        }
#pragma unroll
        for (int i = 0; i < kConvGroup; ++i) {
          float dx = 0.0f;
          // Past the last step there is no dy. Its 0 must meet no infinite weight.
#pragma unroll
          for (int k = 0; k < kWidth; ++k)
            if (used(k) && i - k < left) dx = fmaf(weight[k], dy[i + kBefore - k], dx);
          if (at + i >= 0 && at + i < own) to[i] = from_float<T>(dx);
          const float dy_own = at + kBefore + i < own ? dy[kBefore + i] : 0.0f;
          if (at + kBefore + i < own) {
#pragma unroll
            for (int k = 0; k < kWidth; ++k)
              if (used(k)) dweight[k] = fmaf(dy_own, x[i + k], dweight[k]);
            dbias += dy_own;
          }
        }
        shift(x), shift(dy);
        left -= kConvGroup;
        from.advance(kConvGroup), dout.advance(kConvGroup), to.advance(kConvGroup);
      }
    }
    const int64_t tiles = (p.length + kConvBackwardSteps - 1) / kConvBackwardSteps;
    const int64_t part = (sample * tiles + tile) * p.dim + channel;
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (used(k)) dweight_parts[part * p.width + k - unused] = dweight[k];
    dbias_parts[part] = dbias;
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) conv_forward_kernel(const ConvForward p) {
  Conv<T, kWidth>(p, kConvForwardSteps).forward();
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) conv_backward_kernel(const ConvBackward q, float* dweight, float* dbias) {
  Conv<T, kWidth>(q.forward, kConvBackwardSteps).backward(q, dweight, dbias);
}

// Calls f(Width<w>()) with the padded width w of the kernel.
template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};
template <class F>
void with_width(int64_t width, const F& f) {
  if (width == kCommonTaps) return f(Width<kCommonTaps>());
  if (width <= 8) return f(Width<8>());
  f(Width<kMostTaps>());
}

template <class T>
void launch_conv_forward(const ConvForward& p, void* stream) {
  with_width(p.width, [&](auto width) {
    launch(conv_forward_kernel<T, width.value>, dim3(unsigned(conv_blocks(p, kConvForwardSteps))), dim3(kThreads), 0,
           stream, p);
  });
}

template <class T>
void launch_conv_backward(const ConvBackward& q, float* dweight, float* dbias, void* stream) {
  with_width(q.forward.width, [&](auto width) {
    launch(conv_backward_kernel<T, width.value>, dim3(unsigned(conv_blocks(q.forward, kConvBackwardSteps))),
           dim3(kThreads), 0, stream, q, dweight, dbias);
  });
}

}  // namespace cmimtl::cuda
