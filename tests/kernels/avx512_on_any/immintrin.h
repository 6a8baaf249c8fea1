// The AVX-512 instructions of csrc/cpu/, lane by lane in plain C++, for processors that have none: found before the
// compiler's own header of this name. What is missing here does not compile. Tests only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;
#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_NO_EXC 8

namespace avx512_on_any {

// f(i) in the lanes of the mask, 0 in the others.
template <class V, class T, class F>
V lanes(__mmask16 mask, F f) {
  T results[16] = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) results[i] = f(i);
  V v;
  static_assert(sizeof results == sizeof v);
  std::memcpy(&v, results, sizeof v);
  return v;
}
template <class T, class V>
T lane(const V& v, int i) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(&v) + i * sizeof value, sizeof value);
  return value;
}
template <class To, class From>
To bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <class F>
__m512 floats(F f, __mmask16 mask = 0xFFFF) {
  return lanes<__m512, float>(mask, f);
}
inline float at(const __m512& v, int i) { return lane<float>(v, i); }

// As VCVTPH2PS and VCVTPS2PH have it: no subnormal becomes 0, halves are rounded to even, a NaN stays quiet.
inline float to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? bits<float>(uint32_t(half >> 15) << 31 | 0x7FC00000u) : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}
inline uint16_t to_half(float x) {
  const uint16_t sign = bits<uint32_t>(x) >> 31 << 15;
  if (std::isnan(x)) return sign | 0x7E00;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = exponent < -13 ? -24 : exponent - 11;  // log2 of what the last bit counts
  const int steps = int(std::nearbyint(std::ldexp(magnitude, -unit)));
  return sign | uint16_t(unit == -24 ? steps : ((unit + 24) << 10) + steps);
}

}  // namespace avx512_on_any

inline __m512i _mm512_maskz_permutexvar_epi32(__mmask16 mask, __m512i index, __m512i a) {
  using namespace avx512_on_any;
  return lanes<__m512i, int32_t>(mask, [&](int i) { return lane<int32_t>(a, lane<int32_t>(index, i) & 15); });
}
inline __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  using namespace avx512_on_any;
  return floats([&](int i) {
    const int from = lane<int32_t>(index, i);
    return at(from & 16 ? b : a, from & 15);
  });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  using namespace avx512_on_any;
  return floats([&](int i) { return std::fma(at(a, i), at(b, i), at(c, i)); });
}
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, -c); }
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(-a, b, c); }
inline __m512 _mm512_maskz_scalef_ps(__mmask16 mask, __m512 a, __m512 b) {
  using namespace avx512_on_any;
  const auto power = [](float x) { return std::isnan(x) ? x : std::fmin(std::fmax(std::floor(x), -1e3f), 1e3f); };
  return floats([&](int i) { return std::isnan(at(b, i)) ? at(b, i) : std::ldexp(at(a, i), int(power(at(b, i)))); },
                mask);
}
// As far from the reciprocal as the instruction may be: 2^-14 of it.
inline __m512 _mm512_maskz_rcp14_ps(__mmask16 mask, __m512 a) {
  using namespace avx512_on_any;
  return floats([&](int i) { return (1 - 0x1p-14f) / at(a, i); }, mask);
}
// VRANGE of the smaller magnitude: of a NaN the other operand. Bits 2 and 3: the sign of a, or a negative one.
inline __m512 _mm512_maskz_range_ps(__mmask16 mask, __m512 a, __m512 b, int control) {
  using namespace avx512_on_any;
  if (control != 0b0010 && control != 0b1110)
    std::fputs("_mm512_maskz_range_ps: another control\n", stderr), std::abort();
  return floats(
      [&](int i) {
        const float smaller = std::fabs(at(a, i)) <= std::fabs(at(b, i)) ? at(a, i) : at(b, i);
        return std::copysign(smaller, control == 0b1110 ? -1.0f : at(a, i));
      },
      mask);
}
// Of a NaN the second operand, as MAXPS.
inline __m512 _mm512_maskz_max_ps(__mmask16 mask, __m512 a, __m512 b) {
  using namespace avx512_on_any;
  return floats([&](int i) { return at(a, i) > at(b, i) ? at(a, i) : at(b, i); }, mask);
}
inline __m256i _mm256_loadu_si256(const __m256i* p) {
  __m256i v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void _mm256_storeu_si256(__m256i* p, __m256i v) { std::memcpy(p, &v, sizeof v); }
inline __m512i _mm512_maskz_cvtepu16_epi32(__mmask16 mask, __m256i a) {
  using namespace avx512_on_any;
  return lanes<__m512i, uint32_t>(mask, [&](int i) { return lane<uint16_t>(a, i); });
}
inline __m256i _mm512_maskz_cvtepi32_epi16(__mmask16 mask, __m512i a) {
  using namespace avx512_on_any;
  return lanes<__m256i, uint16_t>(mask, [&](int i) { return uint16_t(lane<uint32_t>(a, i)); });
}
inline __m512 _mm512_maskz_cvtph_ps(__mmask16 mask, __m256i a) {
  using namespace avx512_on_any;
  return floats([&](int i) { return to_float(lane<uint16_t>(a, i)); }, mask);
}
inline __m256i _mm512_maskz_cvtps_ph(__mmask16 mask, __m512 a, int) {
  using namespace avx512_on_any;
  return lanes<__m256i, uint16_t>(mask, [&](int i) { return to_half(at(a, i)); });
}
// The instruction faults where the address is not a multiple of 64.
inline void _mm512_stream_ps(float* p, __m512 v) {
  if (reinterpret_cast<uintptr_t>(p) % 64) std::fputs("_mm512_stream_ps: misaligned\n", stderr), std::abort();
  std::memcpy(p, &v, sizeof v);
}
inline void _mm_sfence() {}
