// The rows of a line of channels: how they are read, written and prefetched. A line is the
// neighbouring channels that fill one cache line, 64 bytes, in the accumulation type. A row is
// their values at one step.
#pragma once

#include "selective_scan.h"
#include "simd.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// The number of steps of a chunk. With AVX-512 the decays, states and two gradients of a chunk take
// 4 KiB a state.
constexpr int kSteps = 16;

// The steps of a tensor that a chunk holds: origin + sign * j for j < count.
struct Steps {
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

// The rows of a line, read where they are, or through `buffer` where channels are not neighbours or
// the line is not full; lanes past `channels` are 0 then.
template <class S>
Rows<const S> gather(const In& x, int64_t batch, int64_t channel, int channels, const Steps& s, S* buffer) {
  constexpr int kLine = Simd<typename Storage<S>::T>::kLine;
  const S* first = element<S>(x, batch, s.origin, channel);
  const int64_t step = s.sign * x.step;
  if (x.dim == 1 && channels == kLine) return {first, step};
  if (channels < kLine)
    for (int i = 0; i < s.count * kLine; ++i) buffer[i] = S{};
  if (x.step == 1 && x.dim != 1) {
    // Steps are neighbours in memory, as in mamba's layout. Backwards, the last row is the first in
    // memory.
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

// Stores past the caches: memory need not be read before it is written, and nothing is pushed out
// of the caches. That is worth it for whole cache lines of results that are too large to stay in
// the caches until they are read. On a Xeon a forward pass with a result of 6 to 100 MB took 5 to
// 10 % less time, and the block around it took no more. It has not been tried on other cores.
#if CMIMTL_SAPPHIRE_RAPIDS
constexpr bool kPastCaches = true;
#else
constexpr bool kPastCaches = false;
#endif
constexpr int64_t kLargeResult = 4 << 20;  // bytes

// Whether a line is stored past the caches; `elements` is the size of one stream of the results.
template <class S>
bool past_caches(const Out& x, int64_t elements, int64_t batch, int64_t channel, const Steps& s) {
  if (!kPastCaches || sizeof(S) != sizeof(typename Storage<S>::T) || x.dim != 1) return false;
  const auto first = reinterpret_cast<uintptr_t>(element<S>(x, batch, s.origin, channel));
  return (first | uintptr_t(x.step * int64_t(sizeof(S)))) % kLineBytes == 0 &&
         elements * int64_t(sizeof(S)) >= kLargeResult;
}

// Stores past the caches are not ordered with other stores. This must be called before another
// thread is told of them.
inline void order_stores() {
#if CMIMTL_SAPPHIRE_RAPIDS
  _mm_sfence();
#endif
}

// The rows that a kernel writes.
template <class S>
struct Target : Rows<S> {
  bool past_caches = false;
  template <class V>
  void put(int64_t j, int v, V x) const {
#if CMIMTL_SAPPHIRE_RAPIDS
    if (past_caches) return _mm512_stream_ps(reinterpret_cast<float*>((*this)[j] + v), __m512(x));
#endif
    store((*this)[j] + v, x);
  }
};

// Where the rows of a line are to be written: in place, or to `buffer`, from which `scatter` then
// takes them to their place. Where `elements` are many they are stored past the caches; without
// `elements` they never are, and order_stores is not needed.
template <class S>
Target<S> target(const Out& x, int64_t batch, int64_t channel, int channels, const Steps& s, S* buffer,
                 int64_t elements = 0) {
  constexpr int kLine = Simd<typename Storage<S>::T>::kLine;
  if (x.dim == 1 && channels == kLine)
    return {{element<S>(x, batch, s.origin, channel), s.sign * x.step}, past_caches<S>(x, elements, batch, channel, s)};
  return {{buffer, kLine}};
}
template <class S>
void scatter(const Rows<S>& rows, const Out& x, int64_t batch, int64_t channel, int channels, const Steps& s) {
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

// Rows that will be read soon, to be prefetched. A line takes 64 bytes of each of many rows, which
// is not a pattern that hardware prefetchers look for. Asked for one by one during the computation
// before, the rows cost no time. (Asked for together they fill the queue of outstanding misses, and
// the computation waits for it.)
class Prefetch {
 public:
  Prefetch() = default;
  // Prefetches the `piece`th lines of the rows. Second-level caches fetch cache lines in pairs. If
  // all streams were at the same place in a pair, as tensors usually are, they would all begin a
  // pair in the same visit and none in the next, and half of the visits would wait for memory. So
  // for half of the streams, one line further is asked for. Without that a Xeon's forward pass took
  // up to 45 % longer, depending on where in a page the tensors began.
  explicit Prefetch(int64_t piece) : piece_(piece) {}

  template <class S, class Strided>
  void add(const Strided& x, int64_t batch, int64_t channel, const Steps& s) {
    if (!x.data) return;
    // Along time a channel's steps are a line or two in memory; the first of two came with the
    // chunk before.
    const bool along_time = x.step == 1 && x.dim != 1;
    const int64_t step = along_time ? s.origin + s.sign * (s.count - 1) : s.origin;
    const char* first = reinterpret_cast<const char*>(element<S>(x, batch, step, channel));
    const int64_t bytes = (along_time ? x.dim : s.sign * x.step) * int64_t(sizeof(S));
    constexpr int kPair = 128, kPiece = Simd<typename Storage<S>::T>::kLine * sizeof(S);
    if (piece_ >= 0 && bytes % kPair == 0) {  // the rows have the same place in a pair, and keep it
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
  // Prefetches row i of the `part`th of `parts` shares of the streams. It is always inlined,
  // because g++ takes a function that only prefetches for one without effect, and drops the calls
  // of it.
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
struct PrefetchShare {
  const Prefetch* rows;
  int part, parts;
  __attribute__((always_inline)) void step(int i) const { rows->row<kLocality>(i, part, parts); }
};

// Loads rows of B or C, (step, dstate), as T.
template <class S, class T>
void load_map(const InMap& x, int64_t batch, int64_t group, const Steps& s, int64_t dstate, T* out) {
  for (int i = 0; i < s.count; ++i, out += dstate) {
    const S* row = static_cast<const S*>(x.data) + batch * x.batch + (s.origin + s.sign * i) * x.step + group * x.group;
    int64_t n = 0;
    if (x.state == 1)
      for (; n + Simd<T>::kLanes <= dstate; n += Simd<T>::kLanes) at(out + n) = load(row + n);
    for (; n < dstate; ++n) out[n] = widen(row[n * x.state]);
  }
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
