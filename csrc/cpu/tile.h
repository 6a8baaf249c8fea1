// Vectors, storage types, and rows of a line. A line is the neighbouring channels that fill one cache line, 64 bytes,
// in the accumulation type; its rows are up to kSteps steps of them.
//
// All of csrc/cpu/*.h but kernels.h is compiled once per instruction set: the including .cpp sets CMIMTL_ISA (a
// namespace, so that the linker never merges code of two instruction sets) and CMIMTL_VECTOR_BYTES, after its target
// pragma.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "scan_math.h"
#include "selective_scan.h"

namespace cmimtl::cpu::CMIMTL_ISA {

constexpr int kSteps = 16;      // of a chunk: with AVX-512 its decays, states and two gradients take 4 KiB a state
constexpr int kLineBytes = 64;  // of a line of channels in the accumulation type

template <class T>
struct Simd {
  static constexpr int kLanes = CMIMTL_VECTOR_BYTES / sizeof(T);
  static constexpr int kLine = kLineBytes / sizeof(T);  // channels of a line
  static constexpr int kVectors = kLine / kLanes;       // of a line
  using Int = typename FloatTraits<T>::Int;
  typedef T V __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
  // The type of a vector in memory, which may lie anywhere and may have been written as another type.
  typedef T Packed __attribute__((vector_size(CMIMTL_VECTOR_BYTES), may_alias, aligned(alignof(T))));
};

template <class T>
struct Simd<const T> : Simd<T> {};

// The vector that begins at p.
template <class T>
inline typename Simd<T>::Packed& at(T* p) {
  return *reinterpret_cast<typename Simd<T>::Packed*>(p);
}
template <class T>
inline const typename Simd<T>::Packed& at(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Packed*>(p);
}

// Storage types. Each widens to its accumulation type T and narrows from it, to the nearest, ties to even; a NaN stays
// one. Without branches, on scalars and on vectors.

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class S>
struct Storage {
  using T = S;
};
template <>
struct Storage<BFloat16> {
  using T = float;
};
template <>
struct Storage<Float16> {
  using T = float;
};

// These work on bits: F is float and U is uint32_t, or both are vectors of them.
template <class F, class U>
inline F widen_bits(U half, BFloat16) {
  return __builtin_bit_cast(F, U(half << 16));
}
// Exponent and mantissa shifted into place, then rescaled: subnormals come out right by the subtraction of 1/2.
template <class F, class U>
inline F widen_bits(U half, Float16) {
  const U word = half << 16, twice = word + word;
  const F normal = __builtin_bit_cast(F, U((twice >> 4) + (0xE0u << 23))) * 0x1p-112f;
  const F subnormal = __builtin_bit_cast(F, U((twice >> 17) | (126u << 23))) - 0.5f;
  const U magnitude = twice < (1u << 27) ? __builtin_bit_cast(U, subnormal) : __builtin_bit_cast(U, normal);
  return __builtin_bit_cast(F, U((word & 0x80000000u) | magnitude));
}
// As a float whose lower half is to be dropped.
template <class F, class U>
inline U round_to_bfloat(F x, U) {
  const U bits = __builtin_bit_cast(U, x), rounded = bits + 0x7FFFu + ((bits >> 16) & 1u), nan = U{} + 0x7FC00000u;
  return x == x ? rounded : nan;
}
template <class F, class U>
inline U narrow_bits(F x, U, BFloat16) {
  return round_to_bfloat(x, U{}) >> 16;
}
// The addition of a power of two, chosen by the exponent, rounds the mantissa to 10 bits.
template <class F, class U>
inline U narrow_bits(F x, U, Float16) {
  const U word = __builtin_bit_cast(U, x), twice = word + word, least = U{} + 0x71000000u;
  F base = __builtin_bit_cast(F, U(word & 0x7FFFFFFFu)) * 0x1p+112f * 0x1p-110f;  // infinite where float16 overflows
  U bias = twice & 0xFF000000u;
  bias = bias < least ? least : bias;
  base += __builtin_bit_cast(F, U((bias >> 1) + 0x07800000u));
  const U bits = __builtin_bit_cast(U, base);
  const U finite = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu), nan = U{} + 0x7E00u;
  return ((word & 0x80000000u) >> 16) | (twice > 0xFF000000u ? nan : finite);
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
template <class S>
inline float widen(S x) {
  return widen_bits<float>(uint32_t(x.bits), x);
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
template <class S>
inline void narrow(float x, S& out) {
  out.bits = uint16_t(narrow_bits(x, uint32_t(), S{}));
}

typedef uint32_t Words __attribute__((vector_size(CMIMTL_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(CMIMTL_VECTOR_BYTES / 2), may_alias, aligned(2)));

inline Simd<float>::V load(const float* p) { return at(p); }
inline Simd<double>::V load(const double* p) { return at(p); }
inline void store(float* p, Simd<float>::V x) { at(p) = x; }
inline void store(double* p, Simd<double>::V x) { at(p) = x; }
#if CMIMTL_VECTOR_BYTES == 64
// One instruction each, where the compilers' own conversion of 16 halves takes two vectors apart. Under a mask of all
// lanes, since g++ warns of the undefined vector inside of the plain intrinsics.
constexpr __mmask16 kAllLanes = 0xFFFF;
inline Simd<float>::V load(const BFloat16* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return Simd<float>::V(Words(_mm512_maskz_cvtepu16_epi32(kAllLanes, halves)) << 16);
}
inline void store(BFloat16* p, Simd<float>::V x) {
  const Words rounded = round_to_bfloat(x, Words{}) >> 16;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(kAllLanes, __m512i(rounded)));
}
inline Simd<float>::V load(const Float16* p) {
  return _mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(Float16* p, Simd<float>::V x) {
  const __m256i halves = _mm512_maskz_cvtps_ph(kAllLanes, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
#else
template <class S>
inline Simd<float>::V load(const S* p) {
  const Words half = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
  return widen_bits<Simd<float>::V>(half, S{});
}
template <class S>
inline void store(S* p, Simd<float>::V x) {
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(narrow_bits(x, Words{}, S{}), Halves);
}
#endif

// The steps of a tensor that a chunk holds: origin + sign * j for j < count.
struct Span {
  int64_t origin, sign;
  int count;
};

// The rows of a line: row j begins at first + j * step.
template <class P>
struct Rows {
  P* first;
  int64_t step;
  P* operator[](int64_t j) const { return first + j * step; }
};

template <class S, class Strided>
inline auto* element(const Strided& x, int64_t batch, int64_t step, int64_t channel) {
  const int64_t offset = batch * x.batch + step * x.step + channel * x.dim;
  if constexpr (__is_same(decltype(x.data), const void*))
    return static_cast<const S*>(x.data) + offset;
  else
    return static_cast<S*>(x.data) + offset;
}

// Transposes four by four: rows of channels become rows of steps.
typedef float Quad __attribute__((vector_size(16), may_alias, aligned(4)));

template <int i, int j, int k, int l>
inline Quad shuffle(Quad a, Quad b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  typedef int Index __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Index{i, j, k, l});
#endif
}

// to[j][c] = from[c][j] for a block of 4 x 4; steps of rows in elements.
inline void transpose4(const float* from, int64_t from_row, float* to, int64_t to_row) {
  const auto row = [&](int c) { return *reinterpret_cast<const Quad*>(from + c * from_row); };
  const Quad a = row(0), b = row(1), c = row(2), d = row(3);
  const Quad ab = shuffle<0, 4, 1, 5>(a, b), cd = shuffle<0, 4, 1, 5>(c, d);
  const Quad ab_high = shuffle<2, 6, 3, 7>(a, b), cd_high = shuffle<2, 6, 3, 7>(c, d);
  *reinterpret_cast<Quad*>(to) = shuffle<0, 1, 4, 5>(ab, cd);
  *reinterpret_cast<Quad*>(to + to_row) = shuffle<2, 3, 6, 7>(ab, cd);
  *reinterpret_cast<Quad*>(to + 2 * to_row) = shuffle<0, 1, 4, 5>(ab_high, cd_high);
  *reinterpret_cast<Quad*>(to + 3 * to_row) = shuffle<2, 3, 6, 7>(ab_high, cd_high);
}

#if CMIMTL_VECTOR_BYTES == 64
// Transposes sixteen by sixteen. Each pass exchanges a bit of the row's number with the same bit of the lane's.
inline void transpose16(const float* from, int64_t from_row, float* to, int64_t to_row) {
  typedef int32_t Lanes __attribute__((vector_size(64)));
  Simd<float>::V rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = at(from + i * from_row);
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    Lanes first, second;  // of the lanes of two rows, 0 to 15 and 16 to 31
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) first[l] = l & bit ? 16 + l - bit : l, second[l] = first[l] + bit;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const auto a = __m512(rows[i]), b = __m512(rows[i | bit]);
      rows[i] = _mm512_permutex2var_ps(a, __m512i(first), b);
      rows[i | bit] = _mm512_permutex2var_ps(a, __m512i(second), b);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) at(to + i * to_row) = rows[i];
}
#endif

// to[j * to_row + c] = from[c * from_row + j], c < rows, j < columns.
template <class S>
void transpose(const S* from, int64_t from_row, int64_t rows, int64_t columns, S* to, int64_t to_row) {
  int64_t whole_rows = 0, whole_columns = 0;
  if constexpr (__is_same(S, float)) {
#if CMIMTL_VECTOR_BYTES == 64
    if (rows % 16 == 0 && columns % 16 == 0) {
      for (int64_t c = 0; c < rows; c += 16)
        for (int64_t j = 0; j < columns; j += 16)
          transpose16(from + c * from_row + j, from_row, to + j * to_row + c, to_row);
      return;
    }
#endif
    whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t c = 0; c < whole_rows; c += 4)
      for (int64_t j = 0; j < whole_columns; j += 4)
        transpose4(from + c * from_row + j, from_row, to + j * to_row + c, to_row);
  }
  for (int64_t c = 0; c < rows; ++c)
    for (int64_t j = c < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_row + c] = from[c * from_row + j];
}

// The rows of a line, read where they are, or through `buffer` where channels are not neighbours or the line is not
// full; lanes past `channels` are 0 then.
template <class S>
Rows<const S> gather(const In& x, int64_t batch, int64_t channel, int channels, const Span& s, S* buffer) {
  constexpr int kLine = Simd<typename Storage<S>::T>::kLine;
  const S* first = element<S>(x, batch, s.origin, channel);
  const int64_t step = s.sign * x.step;
  if (x.dim == 1 && channels == kLine) return {first, step};
  if (channels < kLine)
    for (int i = 0; i < s.count * kLine; ++i) buffer[i] = S{};
  if (x.step == 1 && x.dim != 1) {
    // Steps are neighbours in memory, as in mamba's layout. Backwards, the last row is the first in memory.
    const int64_t last = s.count - 1;
    const bool flipped = s.sign < 0;
    transpose(flipped ? first - last : first, x.dim, channels, s.count, flipped ? buffer + last * kLine : buffer,
              flipped ? -kLine : kLine);
  } else {
    for (int j = 0; j < s.count; ++j)
      for (int c = 0; c < channels; ++c) buffer[j * kLine + c] = first[j * step + c * x.dim];
  }
  return {buffer, kLine};
}

// Stores past the caches: memory need not be read before it is written, and nothing is pushed out of the caches. That
// is worth it for whole cache lines of results that are too large to stay in the caches until they are read. On a Xeon
// a forward pass with a result of 6 to 100 MB took 5 to 10 % less time, and the block around it took no more. It has
// not been tried on other cores.
#if CMIMTL_AVX512_FP16
constexpr bool kPastCaches = true;
#else
constexpr bool kPastCaches = false;
#endif
constexpr int64_t kLargeResult = 4 << 20;  // bytes

// Whether a line is stored past the caches; `elements` is the size of one stream of the results.
template <class S>
bool past_caches(const Out& x, int64_t elements, int64_t batch, int64_t channel, const Span& s) {
  if (!kPastCaches || sizeof(S) != sizeof(typename Storage<S>::T) || x.dim != 1) return false;
  const auto first = reinterpret_cast<uintptr_t>(element<S>(x, batch, s.origin, channel));
  return (first | uintptr_t(x.step * int64_t(sizeof(S)))) % kLineBytes == 0 &&
         elements * int64_t(sizeof(S)) >= kLargeResult;
}

// Stores past the caches are not ordered with other stores. This must be called before another thread is told of them.
inline void order_stores() {
#if CMIMTL_AVX512_FP16
  _mm_sfence();
#endif
}

// The rows that a kernel writes.
template <class S>
struct Target : Rows<S> {
  bool past_caches = false;
  template <class V>
  void put(int64_t j, int v, V x) const {
#if CMIMTL_AVX512_FP16
    if (past_caches) return _mm512_stream_ps(reinterpret_cast<float*>((*this)[j] + v), __m512(x));
#endif
    store((*this)[j] + v, x);
  }
};

// Where the rows of a line are to be written: in place, or to `buffer`, from which `scatter` then takes them to their
// place. Where `elements` are many they are stored past the caches; without `elements` they never are, and order_stores
// is not needed.
template <class S>
Target<S> target(const Out& x, int64_t batch, int64_t channel, int channels, const Span& s, S* buffer,
                 int64_t elements = 0) {
  constexpr int kLine = Simd<typename Storage<S>::T>::kLine;
  if (x.dim == 1 && channels == kLine)
    return {{element<S>(x, batch, s.origin, channel), s.sign * x.step}, past_caches<S>(x, elements, batch, channel, s)};
  return {{buffer, kLine}};
}
template <class S>
void scatter(const Rows<S>& rows, const Out& x, int64_t batch, int64_t channel, int channels, const Span& s) {
  constexpr int kLine = Simd<typename Storage<S>::T>::kLine;
  if (x.dim == 1 && channels == kLine) return;
  S* first = element<S>(x, batch, s.origin, channel);
  const int64_t step = s.sign * x.step;
  if (x.step == 1 && x.dim != 1) {
    const int64_t last = s.count - 1;
    const bool flipped = s.sign < 0;
    transpose(flipped ? rows[last] : rows[0], flipped ? -rows.step : rows.step, s.count, channels,
              flipped ? first - last : first, x.dim);
  } else {
    for (int j = 0; j < s.count; ++j)
      for (int c = 0; c < channels; ++c) first[j * step + c * x.dim] = rows[j][c];
  }
}

// Writes 0 to the steps from `valid` on.
template <class S>
void clear_rest(const Out& x, int64_t batch, int64_t channel, int channels, int64_t valid, int64_t length) {
  for (int64_t t = valid; t < length; ++t) {
    S* row = element<S>(x, batch, t, channel);
    for (int c = 0; c < channels; ++c) row[c * x.dim] = S{};
  }
}

// The cache that a row is prefetched to, in the numbers of __builtin_prefetch.
constexpr int kFirstLevel = 3, kSecondLevel = 2;

// Rows that will be read soon, to be prefetched. A line takes 64 bytes of each of many rows, which is not a pattern
// that hardware prefetchers look for. Asked for one by one during the computation before, the rows cost no time. (Asked
// for together they fill the queue of outstanding misses, and the computation waits for it.)
class Prefetch {
 public:
  Prefetch() = default;
  // Prefetches the `piece`th lines of the rows. Second-level caches fetch cache lines in pairs. If all streams were at
  // the same place in a pair, as tensors usually are, they would all begin a pair in the same visit and none in the
  // next, and half of the visits would wait for memory. So for half of the streams, one line further is asked for.
  // Without that a Xeon's forward pass took up to 45 % longer, depending on where in a page the tensors began.
  explicit Prefetch(int64_t piece) : piece_(piece) {}

  template <class S, class Strided>
  void add(const Strided& x, int64_t batch, int64_t channel, const Span& s) {
    if (!x.data) return;
    // Along time a channel's steps are a line or two in memory; the first of two came with the chunk before.
    const bool along_time = x.step == 1 && x.dim != 1;
    const int64_t step = along_time ? s.origin + s.sign * (s.count - 1) : s.origin;
    const char* first = reinterpret_cast<const char*>(element<S>(x, batch, step, channel));
    const int64_t bytes = (along_time ? x.dim : s.sign * x.step) * int64_t(sizeof(S));
    constexpr int kPair = 128, kPiece = Simd<typename Storage<S>::T>::kLine * sizeof(S);
    if (piece_ >= 0 && bytes % kPair == 0) {  // the rows are at the same place in a pair, and stay there
      const int64_t place = int64_t(reinterpret_cast<uintptr_t>(first)) / kPiece - piece_;
      first += ((streams_ / 2 - place) & (kPair / kPiece - 1)) * kPiece;
    }
    stream_[streams_++] = {first, bytes};
  }
  // Neighbouring bytes, kSteps cache lines a stream.
  void add(const void* first, int64_t bytes) {
    constexpr int64_t kStream = kSteps * kLineBytes;
    for (int64_t done = 0; done < bytes && streams_ < kMost; done += kStream)
      stream_[streams_++] = {static_cast<const char*>(first) + done, kLineBytes};
  }
  // Prefetches row i of the `part`th of `parts` shares of the streams. It is always inlined, because g++ takes a
  // function that only prefetches for one without effect, and drops the calls of it.
  template <int kLocality = kFirstLevel>
  __attribute__((always_inline)) void row(int i, int part, int parts) const {
    for (int k = part; k < streams_; k += parts)
      __builtin_prefetch(stream_[k].first + i * stream_[k].step, 0, kLocality);
  }

 private:
  struct Stream {
    const char* first;
    int64_t step;
  };
  static constexpr int kMost = 16;  // up to 12 of a backward pass, and states
  Stream stream_[kMost];
  int streams_ = 0;
  int64_t piece_ = -1;
};

// A share of the rows to prefetch, one of each of its streams in every step.
template <int kLocality>
struct Ahead {
  const Prefetch* rows;
  int part, parts;
  __attribute__((always_inline)) void step(int i) const { rows->row<kLocality>(i, part, parts); }
};

// Loads rows of B or C, (step, dstate), as T.
template <class S, class T>
void load_map(const InMap& x, int64_t batch, int64_t group, const Span& s, int64_t dstate, T* out) {
  for (int i = 0; i < s.count; ++i, out += dstate) {
    const S* row = static_cast<const S*>(x.data) + batch * x.batch + (s.origin + s.sign * i) * x.step + group * x.group;
    int64_t n = 0;
    if (x.state == 1)
      for (; n + Simd<T>::kLanes <= dstate; n += Simd<T>::kLanes) at(out + n) = load(row + n);
    for (; n < dstate; ++n) out[n] = widen(row[n * x.state]);
  }
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
