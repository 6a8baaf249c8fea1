// exp2, softplus and sigmoid on vectors of float and double. The compilers' vector extensions, and
// AVX-512 where it has something better. Everything is branch-free.
#pragma once

#include <cstdint>

namespace cmimtl::cpu::CMIMTL_ISA {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// What differs between float and double. kRound, 1.5 * 2^mantissa bits, added to x leaves round(x)
// in the low bits.
template <class T>
struct FloatTraits;
template <>
struct FloatTraits<float> {
  using Int = int32_t;
  static constexpr float kRound = 12582912.0f;
  static constexpr int kMantissaBits = 23;
  static constexpr float kMaxExponent = 126.0f;  // 2^±126 is normal
  static constexpr float kUnderflow = -150.0f, kOverflow = 128.0f;
  static constexpr float kLargest = 3.40282347e38f;
};
template <>
struct FloatTraits<double> {
  using Int = int64_t;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr int kMantissaBits = 52;
  static constexpr double kMaxExponent = 1022.0;
  static constexpr double kUnderflow = -1075.0, kOverflow = 1024.0;
  static constexpr double kLargest = 1.7976931348623157e308;
};

// 2^f on [-1/2, 1/2]. The constant term is exactly 1: a recurrence amplifies the error of 1 - 2^f,
// which with it is float32's own (4e-5 after 1e4 steps); the plain minimax polynomial of the same
// degree is five times worse.
template <class V>
inline V exp2_polynomial(V f, float) {
  V p = 1.34004359e-3f - V{};
  p = p * f + 9.66637295e-3f;
  p = p * f + 5.55033318e-2f;
  p = p * f + 2.4022349e-1f;
  p = p * f + 6.93147196e-1f;
  return p * f + 1.0f;
}
// Taylor: (ln 2 / 2)^13 / 13! is 2e-16.
template <class V>
inline V exp2_polynomial(V f, double) {
  V p = 2.5678435993488206e-11 - V{};
  p = p * f + 4.4455382718708117e-10;
  p = p * f + 7.0549116208011233e-09;
  p = p * f + 1.0178086009239700e-07;
  p = p * f + 1.3215486790144309e-06;
  p = p * f + 1.5252733804059841e-05;
  p = p * f + 1.5403530393381608e-04;
  p = p * f + 1.3333558146428443e-03;
  p = p * f + 9.6181291076284768e-03;
  p = p * f + 5.5504108664821580e-02;
  p = p * f + 2.4022650695910072e-01;
  p = p * f + kLn2;
  return p * f + 1.0;
}

#if CMIMTL_VECTOR_BYTES == 64
// 2^(a * b) of 16 floats, which AVX-512 can look up in a register: a * b, rounded to sixteenths,
// leaves a rest f near 0 to a polynomial of degree 3 instead of 5. The sum with kRoundToSixteenths
// has the table's index in its four lowest bits. Every FMA is written as one: left to the compiler,
// not all copies would contract a * b alike, and the bits would differ.
//
// A table rounds to 2^-25, and with A and delta constant the recurrence adds the same error at
// every step. So entry k is 2^(k/16 - shift), and the polynomial is of 2^(f + shift). Of the shifts
// for which the decay 1, at a * b = 0, has an error of no more than 2e-10, that one was taken for
// which no entry has more than 2e-8.
constexpr float kRoundToSixteenths = FloatTraits<float>::kRound / 16;
typedef int32_t Entries __attribute__((vector_size(64)));

template <class V>
inline V look_up(Entries entries, V index) {
  return V(_mm512_maskz_permutexvar_epi32(0xFFFF, __m512i(index), __m512i(entries)));
}

#if CMIMTL_SAPPHIRE_RAPIDS
// On Sapphire Rapids a multiplication by 2^n is one operation, and all operations wait for the same
// two pipes.
template <class V>
inline V exp2_product16(V a, V b) {
  // The shift is 0.0264416193.
  constexpr Entries kPowers = {0x3F7B59CD, 0x3F833D51, 0x3F890CCC, 0x3F8F1E22, 0x3F95743E, 0x3F9C122B,
                               0x3FA2FB17, 0x3FAA3254, 0x3FB1BB5A, 0x3FB999C8, 0x3FC1D165, 0x3FCA6625,
                               0x3FD35C27, 0x3FDCB7BA, 0x3FE67D5C, 0x3FF0B1C0};
  const V shifted = _mm512_fmadd_ps(a, b, kRoundToSixteenths - V{}), whole = shifted - kRoundToSixteenths;
  const V f = _mm512_fmsub_ps(a, b, whole), power = look_up(kPowers, shifted);
  V p = _mm512_fmadd_ps(f, 5.65287545e-2f - V{}, 2.44677886e-1f - V{});
  p = _mm512_fmadd_ps(p, f, 7.05968261e-1f - V{});
  p = _mm512_fmadd_ps(p, f, 1.84969213e-2f - V{});
  // It scales by 2^floor(whole).
  return _mm512_maskz_scalef_ps(0xFFFF, _mm512_fmadd_ps(p, power, power), whole);
}
template <class V>
inline V exp2_decay16(V a, V b) {
  return exp2_product16(a, b);
}
#else
constexpr float kShift = -0x1.acadeap-8f;

// 2^(a * b) from its parts: `shifted`, the sum with kRoundToSixteenths, and the rest f, which
// includes the shift. floor(a * b), which stands above the index in the sum, is added to the
// exponent of the table's entry. The index is added with it, so the entries leave it out.
template <class V>
inline V exp2_of_parts(V shifted, V f) {
  constexpr int kBits = FloatTraits<float>::kMantissaBits - 4;
  constexpr Entries kPowers = {
      0x3F8094E8 - (0 << kBits),  0x3F864643 - (1 << kBits),  0x3F8C3824 - (2 << kBits),  0x3F926D66 - (3 << kBits),
      0x3F98E905 - (4 << kBits),  0x3F9FAE1E - (5 << kBits),  0x3FA6BFF2 - (6 << kBits),  0x3FAE21E7 - (7 << kBits),
      0x3FB5D789 - (8 << kBits),  0x3FBDE48C - (9 << kBits),  0x3FC64CCF - (10 << kBits), 0x3FCF145C - (11 << kBits),
      0x3FD83F6B - (12 << kBits), 0x3FE1D263 - (13 << kBits), 0x3FEBD1DF - (14 << kBits), 0x3FF642AD - (15 << kBits)};
  const V power = V(Entries(look_up(kPowers, shifted)) + (Entries(shifted) << kBits));
  V p = _mm512_fmadd_ps(f, 5.55054098e-2f - V{}, 2.40233555e-1f - V{});
  p = _mm512_fmadd_ps(p, f, 6.93147182e-1f - V{}) * f;
  return _mm512_fmadd_ps(p, power, power);
}
template <class V>
inline V exp2_product16(V a, V b) {
  const V shifted = _mm512_fmadd_ps(a, b, kRoundToSixteenths - V{});
  return exp2_of_parts(shifted, V(_mm512_fmsub_ps(a, b, shifted - kRoundToSixteenths) + kShift));
}
// An addition takes the place of an FMA, because everything waits for the pipes of FMAs, and
// additions have pipes of their own. a * b is rounded once more, which costs a decay 2e-8 at most.
template <class V>
inline V exp2_decay16(V a, V b) {
  const V x = _mm512_fmadd_ps(a, b, kShift - V{}), shifted = x + kRoundToSixteenths;
  return exp2_of_parts(shifted, V(x - (shifted - kRoundToSixteenths)));
}
#endif
#endif

// 2^(a * b) for |a * b| <= kMaxExponent. The product is folded into the rounding (two FMAs and no
// multiplication), and round(a * b), in the low bits of the sum, is added to the exponent.
template <class T, class V, class I>
inline V exp2_product(V a, V b) {
#if CMIMTL_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return exp2_product16(a, b);
#endif
  using F = FloatTraits<T>;
  const V shifted = a * b + F::kRound;
  const V whole = shifted - F::kRound;
  const V p = exp2_polynomial(V(a * b - whole), T());
  return V(I(p) + (I(shifted) << F::kMantissaBits));
}

// The same, as the recurrence uses it.
template <class T, class V, class I>
inline V exp2_decay(V a, V b) {
#if CMIMTL_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return exp2_decay16(a, b);
#endif
  return exp2_product<T, V, I>(a, b);
}

// 2^x for any x: 0 below the smallest number, infinity above the largest, NaN for NaN.
template <class T, class V, class I>
inline V exp2_any(V x) {
  using F = FloatTraits<T>;
  const V high = F::kMaxExponent - V{}, low = -F::kMaxExponent - V{};
  V inside = x > high ? high : x;
  inside = inside < low ? low : inside;
  V result = exp2_product<T, V, I>(inside, 1 - V{});
  result = x < F::kUnderflow ? V{} : result;
  result = x >= F::kOverflow ? V(T(__builtin_inf()) - V{}) : result;
  return x == x ? result : x;
}

// log(1 + y) + z for 0 <= y <= 1; the logarithm's relative error is 3e-8 (minimax of log1p(y) / y).
template <class V>
inline V log1p_unit(V y, V z, float) {
  V p = 5.23271435e-3f - V{};
  p = p * y - 2.95053158e-2f;
  p = p * y + 7.82260702e-2f;
  p = p * y - 1.36632551e-1f;
  p = p * y + 1.91060107e-1f;
  p = p * y - 2.4842983e-1f;
  p = p * y + 3.33190969e-1f;
  p = p * y - 4.99994931e-1f;
  p = p * y + 9.9999997e-1f;
  return y * p + z;
}
// 2 artanh(s) with s = y / (2 + y) <= 1/3; the terms fall by 1/9, so 17 of them reach 2^-53.
template <class V>
inline V log1p_unit(V y, V z, double) {
  const V s = y / (2.0 + y), square = s * s;
  V p = V{};
#pragma GCC unroll 17
  for (int k = 16; k >= 0; --k) p = p * square + 2.0 / (2 * k + 1);
  return s * p + z;
}

// a / b, for a normal b from 1 to 2^125.
template <class V>
inline V quotient(V a, V b, float) {
#if CMIMTL_SAPPHIRE_RAPIDS
  // These cores divide 16 floats in 16 cycles. The guess is 2^-14 away, and one step of Newton's
  // method squares that.
  const V guess = _mm512_maskz_rcp14_ps(0xFFFF, b);
  return a * V(_mm512_fmadd_ps(guess, _mm512_fnmadd_ps(b, guess, 1 - V{}), guess));
#else
  return a / b;
#endif
}
template <class V>
inline V quotient(V a, V b, double) {
  return a / b;
}

// e^-|x|: 0 below the smallest normal number, and for NaN. Without their signs, numbers have the
// order of their bits as integers.
template <class T, class V, class I>
inline V exp_of_minus_magnitude(V x) {
  using Int = typename FloatTraits<T>::Int;
  constexpr T kBound = T(FloatTraits<T>::kMaxExponent * kLn2), kBase = T(kLog2E);
#if CMIMTL_VECTOR_BYTES == 64
  // VRANGE: of x and the bound the one with the smaller magnitude, with the sign set.
  if constexpr (sizeof(T) == 4) {
#if CMIMTL_SAPPHIRE_RAPIDS
    // The multiplication by 2^n gives 0 by itself: e^-150 is 2^-216.
    return exp2_product16(V(_mm512_maskz_range_ps(0xFFFF, x, 150 - V{}, 0b1110)), kBase - V{});
#else
    const V inside = _mm512_maskz_range_ps(0xFFFF, x, kBound - V{}, 0b1110);
    return inside > -kBound ? exp2_product16(inside, V(kBase - V{})) : V{};
#endif
  }
#endif
  const I bound = __builtin_bit_cast(Int, kBound) - I{};
  const I magnitude = I(x) & (~(Int(1) << (8 * sizeof(T) - 1)) - I{});
  return V(I(exp2_product<T, V, I>(V(magnitude), -kBase - V{})) & (magnitude <= bound));
}

// max(x, 0); NaN for NaN.
template <class T, class V>
inline V positive_part(V x) {
#if CMIMTL_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return V(_mm512_maskz_max_ps(0xFFFF, V{}, x));
#endif
  return x < 0 ? V{} : x;
}

// softplus(x) = log(1 + e^x) and its slope, the sigmoid, from e = exp_of_minus_magnitude(x). At
// -infinity both are exactly 0. For NaN the value is NaN, and the slope is some number.
template <class T, class V>
inline void softplus(V x, V e, V& value, V& slope) {
  value = log1p_unit(e, positive_part<T>(x), T());
  slope = quotient(x < 0 ? e : V(1 - V{}), V(1 + e), T());
}

// The sigmoid of x. At -infinity it is exactly 0, so that x * sigmoid(x) is NaN there, as in
// PyTorch. For NaN it is some number, and x * sigmoid(x) is NaN.
template <class T, class V, class I>
inline V sigmoid(V x) {
#if CMIMTL_VECTOR_BYTES == 64
  // VRANGE clamps both ways in one operation, so the sign can stay.
  if constexpr (sizeof(T) == 4) {
    constexpr float kBound = float((FloatTraits<float>::kMaxExponent - 1) * kLn2);
    const V inside = _mm512_maskz_range_ps(0xFFFF, x, kBound - V{}, 0b0010);
    const V one = 1 - V{}, result = quotient(one, V(1 + exp2_product16(inside, V(-float(kLog2E) - V{}))), T());
    return x < -kBound ? V{} : result;
  }
#endif
  const V e = exp_of_minus_magnitude<T, V, I>(x);
  return quotient(x < 0 ? e : V(1 - V{}), V(1 + e), T());
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
