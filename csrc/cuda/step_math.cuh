// Functions of values that a channel has once for each step, not once for each state: softplus,
// SiLU and their slopes.
#pragma once

#include "device.h"

namespace cmimtl::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The kernels keep step sizes d times log2 e. Then the decay is 2^(d A), and softplus(x) log2 e =
// log2(1 + 2^(x log2 e)) needs no product before its exponential. They keep B times ln 2 to
// make up for that.

// log2(1 + e) / e for 0 <= e <= 1, a minimax polynomial. Its relative error is 1.9e-7 for float32.
// For the half types, whose step sizes are rounded to 5e-4 and 4e-3, it is 8.4e-6. A polynomial of
// log2(1 + e) itself would lose all digits where e is small.
template <class T>
__device__ __forceinline__ float log2_1p_ratio(float e) {
  if constexpr (sizeof(T) == 4) {
    float p = -0.012319475f;
    p = fmaf(p, e, 0.0636079f);
    p = fmaf(p, e, -0.15535188f);
    p = fmaf(p, e, 0.25600973f);
    p = fmaf(p, e, -0.35339484f);
    p = fmaf(p, e, 0.4800637f);
    p = fmaf(p, e, -0.7213101f);
    return fmaf(p, e, 1.4426948f);
  } else {
    float p = -0.0344359f;
    p = fmaf(p, e, 0.14603287f);
    p = fmaf(p, e, -0.30303618f);
    p = fmaf(p, e, 0.46917406f);
    p = fmaf(p, e, -0.72042614f);
    return fmaf(p, e, 1.4426829f);
  }
}

// log2(1 + 2^x), with e = 2^-|x|.
template <class T>
__device__ __forceinline__ float softplus2(float x, float e) {
  return fmaf(e, log2_1p_ratio<T>(e), fmaxf(x, 0.0f));
}

// r[i] = 1 / (1 + e[i]) for 0 <= e[i] <= 1. All kCount of them come from one reciprocal, that of
// their product, because the MUFU pipe bounds the forward pass. A NaN counts as 1, so that it does
// not reach the other steps.
template <int kCount>
__device__ __forceinline__ void reciprocals(const float (&e)[kCount], float (&r)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "a product tree of at most four");
  float a[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) a[i] = fminf(1.0f + e[i], 2.0f);
  if constexpr (kCount == 1) {
    r[0] = rcp(a[0]);
  } else if constexpr (kCount == 2) {
    const float both = rcp(a[0] * a[1]);
    r[0] = both * a[1], r[1] = both * a[0];
  } else {
    const float left = a[0] * a[1], right = a[2] * a[3], all = rcp(left * right);
    const float of_left = all * right, of_right = all * left;
    r[0] = of_left * a[1], r[1] = of_left * a[0];
    r[2] = of_right * a[3], r[3] = of_right * a[2];
  }
}

// e^-|x|.
__device__ __forceinline__ float exp_of_minus_magnitude(float x) { return ex2(fabsf(x) * -kLog2E); }

// x / (1 + e^-x), with e = e^-|x| and r = 1 / (1 + e).
__device__ __forceinline__ float silu(float x, float e, float r) { return fmaf(fabsf(x) * -e, r, fmaxf(x, 0.0f)); }

// 1 / (1 + e^-x), with the same e and r.
__device__ __forceinline__ float sigmoid(float x, float e, float r) { return (x < 0.0f ? e : 1.0f) * r; }

// 1 / (1 + e^-x) with a reciprocal of its own. It takes 4 issue slots, for code that these bound
// and not the MUFU pipe.
__device__ __forceinline__ float sigmoid(float x) { return rcp(1.0f + ex2(x * -kLog2E)); }

// The slope of softplus2 at x, where softplus2 has the value y: 1 / (1 + 2^-x) = 2^(x - y). Where x
// and y cancel, no digit is lost that counts: the slope has the error of y, which is 2^-24 y at
// most, and from x = 24 on y is x.
__device__ __forceinline__ float softplus2_slope(float x, float y) { return ex2(x - y); }

}  // namespace cmimtl::cuda
