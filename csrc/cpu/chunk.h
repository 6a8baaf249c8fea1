// What forward and backward pass share: the geometry of a task, the chunks of processed steps, and
// the weights, laid out for all samples.
//
// A task is one sample and some neighbouring lines of channels. It goes through the sample's valid
// steps in the order of the recurrence, one chunk at a time, and in each chunk through its lines,
// so that rows stream from memory. A chunk is `chunk` processed steps; where there are checkpoints,
// it is the steps between two of them. Processed step i is step i of the sequence; with `reverse`
// it is counted from the last valid step. In the cross scan, two neighbouring steps are the product
// and the sum of one pair.
#pragma once

#include "rows.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// A block has at most so many lines. Their parts of dB and dC are added up before they are stored.
constexpr int kBlockLines = 8;

// A line: neighbouring channels of one group of B and C, up to 64 bytes of them.
struct Line {
  int64_t index, channel;  // of all lines; the first channel
  int channels;
  int64_t group;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
inline int64_t lines_per_group(const ScanSizes& s) {
  return ceil_div(s.dim / s.ngroups, Simd<T>::kLine);
}
template <class T>
inline Line line_at(const ScanSizes& s, int64_t index) {
  int64_t per_group = s.dim, group = 0, place = index;
  if (s.ngroups > 1) {  // else without the divisions, for this is asked at every visit
    const int64_t lines = lines_per_group<T>(s);
    per_group /= s.ngroups, group = index / lines, place = index % lines;
  }
  const int64_t offset = place * Simd<T>::kLine, left = per_group - offset;
  return {.index = index,
          .channel = group * per_group + offset,
          .channels = int(left < Simd<T>::kLine ? left : Simd<T>::kLine),
          .group = group};
}

// A block: the lines first … last - 1, of one group. The size of blocks changes the rounding, so it
// depends on nothing but the channels. Where there are few lines, a block is a quarter of them, so
// that several threads have blocks. How blocks are dealt out to tasks changes no result.
struct Block {
  int64_t first, last, group;
};
template <class T>
inline int64_t lines_of_block(const ScanSizes& s) {
  const int64_t quarter = lines_per_group<T>(s) / 4;
  return quarter < 1 ? 1 : quarter < kBlockLines ? quarter : kBlockLines;
}
template <class T>
inline int64_t block_count(const ScanSizes& s) {
  return s.ngroups * ceil_div(lines_per_group<T>(s), lines_of_block<T>(s));
}
template <class T>
inline Block block_at(const ScanSizes& s, int64_t index) {
  const int64_t lines = lines_per_group<T>(s), size = lines_of_block<T>(s), blocks = ceil_div(lines, size);
  const int64_t group = index / blocks, first = index % blocks * size, last = first + size;
  return {.first = group * lines + first, .last = group * lines + (last < lines ? last : lines), .group = group};
}

inline int64_t valid_length(const int64_t* lengths, int64_t length, int64_t batch) {
  if (!lengths) return length;
  const int64_t n = lengths[batch];
  return n < 0 ? 0 : n > length ? length : n;
}
inline int64_t valid_length(const ScanForward& p, int64_t batch) {
  return valid_length(p.lengths, p.size.length, batch);
}

// The number of elements of one stream, (batch, length, dim).
inline int64_t elements(const ScanSizes& s) { return s.batch * s.length * s.dim; }

inline int chunk_steps(const ScanSizes& s) { return s.checkpoint_every ? int(s.checkpoint_every) : kSteps; }

// The rows of the processed steps begin … begin + count - 1: those of delta, B and C, and those of
// the streams.
struct Chunk {
  int64_t begin;
  int count;
  Steps steps, pairs;  // of the step axis; of each stream: as steps, or pairs of them
};

inline Chunk chunk_at(const ScanForward& p, int64_t valid, int64_t begin) {
  const int64_t total = valid * p.streams, left = total - begin, sign = p.reverse ? -1 : 1;
  const int chunk = chunk_steps(p.size), count = int(left < chunk ? left : chunk);
  const int log = p.streams - 1;  // 1 or 2 streams
  const int64_t pair = begin >> log;
  return {.begin = begin,
          .count = count,
          .steps = {.origin = p.reverse ? total - 1 - begin : begin, .sign = sign, .count = count},
          .pairs = {.origin = p.reverse ? valid - 1 - pair : pair, .sign = sign, .count = count >> log}};
}

// The order in which a task visits its pieces (lines or blocks) of every chunk. Where channels are
// neighbours in memory, it visits all pieces of a chunk, then the next chunk, so that rows stream.
// Where steps are neighbours, as in mamba's layout, it visits all chunks of a piece, then the next
// piece, so that few pages are in use at a time. The order changes no result.
class Visits {
 public:
  Visits(const In& stream, int64_t chunks, int64_t pieces)
      : chunks_(chunks), pieces_(pieces), along_time_(stream.step == 1 && stream.dim != 1) {}
  int64_t chunk() const { return chunk_; }
  int64_t piece() const { return piece_; }
  bool more() const { return chunk_ < chunks_ && piece_ < pieces_; }
  // After the last visit it stays where it is.
  void advance() {
    if (!more()) return;
    int64_t &inner = along_time_ ? chunk_ : piece_, &outer = along_time_ ? piece_ : chunk_;
    if (++inner < (along_time_ ? chunks_ : pieces_)) return;
    inner = 0;
    ++outer;
  }
  // Where it will be after `count` more visits.
  Visits later(int count) const {
    Visits at = *this;
    for (int i = 0; i < count; ++i) at.advance();
    return at;
  }

 private:
  int64_t chunks_, pieces_, chunk_ = 0, piece_ = 0;
  bool along_time_;
};

// Keeps B and C of the chunk and group that were asked for last.
template <class S, class T>
class Maps {
 public:
  Maps(const ScanForward& p, int64_t batch, T* B, T* C) : p_(p), batch_(batch), B_(B), C_(C) {}
  void load(const Chunk& c, int64_t group) {
    if (c.begin == begin_ && group == group_) return;
    load_map<S>(p_.B, batch_, group, c.steps, p_.size.dstate, B_);
    load_map<S>(p_.C, batch_, group, c.steps, p_.size.dstate, C_);
    begin_ = c.begin, group_ = group;
  }

 private:
  const ScanForward& p_;
  int64_t batch_;
  T *B_, *C_;
  int64_t begin_ = -1, group_ = -1;
};

// The state of a channel before a chunk.
template <class T>
inline T* checkpoint(const ScanForward& p, const Chunk& c, int64_t batch, int64_t channel) {
  const ScanSizes& s = p.size;
  return static_cast<T*>(p.checkpoints) + ((batch * s.nchunks + c.begin / chunk_steps(s)) * s.dim + channel) * s.dstate;
}

// Calls f(j, i, v) for row j of the streams, the processed step i that it is, or the first of the
// two, and lane v.
template <class T, class F>
inline void each_row(const ScanForward& p, const Chunk& c, F f) {
  for (int j = 0; j < c.pairs.count; ++j)
#pragma GCC unroll 8
    for (int v = 0; v < Simd<T>::kLine; v += Simd<T>::kLanes) f(j, j * p.streams, v);
}

// Calls f(i, v) for processed step i and lane v. What is done for every step before anything else
// is worth a loop of its own: a core holds some hundred waiting operations, and of shorter chains
// those are more steps.
template <class T, class F>
inline void each_step(const Chunk& c, F f) {
  for (int i = 0; i < c.count; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < Simd<T>::kLine; v += Simd<T>::kLanes) f(i, v);
}

// The product and the sum of pair j are processed steps 2 j + product and 2 j + sum: time reversed,
// the sum comes first.
struct Order {
  int product, sum;
  explicit Order(const ScanForward& p) : product(p.reverse), sum(!p.reverse) {}
};

// The weights in the order of the lines, [line][state][lane] and [line][lane]. They are made once
// per call, and all tasks read them.
template <class T>
struct Weights {
  T *A2, *largest;  // A * log2(e), and the largest magnitude of each channel's, NaN where one is
  T *D, *bias;      // 0 where absent

  Weights(void* memory, const ScanSizes& s) {
    const int64_t lanes = s.ngroups * lines_per_group<T>(s) * Simd<T>::kLine;
    A2 = static_cast<T*>(memory);
    largest = A2 + lanes * s.dstate;
    D = largest + lanes;
    bias = D + lanes;
  }
  static int64_t bytes(const ScanSizes& s) { return s.ngroups * lines_per_group<T>(s) * kLineBytes * (s.dstate + 3); }
};

// Loads one value for each channel of a line; 0 past the last channel, and where there is no
// tensor.
template <class T>
void load_channels(const void* data, const Line& line, T* out) {
  for (int c = 0; c < Simd<T>::kLine; ++c)
    out[c] = data && c < line.channels ? static_cast<const T*>(data)[line.channel + c] : T(0);
}

// States of a line: (channel, dstate) in memory, [state][lane] here; lanes past the last channel
// are 0.
template <class T>
void load_states(const T* from, int64_t dstate, int channels, T* to) {
  constexpr int kLine = Simd<T>::kLine;
  if (!from || channels < kLine)
    for (int64_t i = 0; i < dstate * kLine; ++i) to[i] = 0;
  if (from) transpose(from, dstate, channels, dstate, to, kLine);
}
template <class T>
void store_states(const T* from, int64_t dstate, int channels, T* to) {
  transpose(from, Simd<T>::kLine, dstate, channels, to, dstate);
}

template <class T>
void prepare_weights(const ScanForward& p, const Weights<T>& w, const Line& line) {
  constexpr int kLine = Simd<T>::kLine;
  constexpr T kLargest = FloatTraits<T>::kLargest;
  const int64_t dstate = p.size.dstate, at_line = line.index * kLine;
  T *A2 = w.A2 + at_line * dstate, *largest = w.largest + at_line;
  load_states(static_cast<const T*>(p.A) + line.channel * dstate, dstate, line.channels, A2);
  for (int c = 0; c < kLine; ++c) largest[c] = 0;
  for (int64_t n = 0; n < dstate; ++n)
    for (int c = 0; c < kLine; ++c) {
      const T A = A2[n * kLine + c], product = A * T(kLog2E);
      // Of a finite A it is finite, so that a step of size 0 leaves the state as it is.
      const bool above = __builtin_fabs(product) > kLargest && __builtin_fabs(A) <= kLargest;
      const T x = A2[n * kLine + c] = !above ? product : A < 0 ? -kLargest : kLargest;
      const T magnitude = x < 0 ? -x : x;
      // No number is above a NaN, which stays.
      largest[c] = magnitude > largest[c] || magnitude != magnitude ? magnitude : largest[c];
    }
  load_channels(p.D, line, w.D + at_line);
  load_channels(p.delta_bias, line, w.bias + at_line);
}

// The largest magnitude of the step sizes of each lane, and whether d_t * A then stays in the range
// of exp2_decay. Magnitudes are compared as integers: they have the same order as the numbers, and
// a NaN is larger than all numbers.
template <class T>
class Magnitude {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  static constexpr typename Simd<T>::Int kWithoutSign = ~(typename Simd<T>::Int(1) << (8 * sizeof(T) - 1));

 public:
  void add(int v, V delta) {
    const I bits = I(delta) & kWithoutSign;
    I& most = most_[v / Simd<T>::kLanes];
    most = bits > most ? bits : most;
  }
  bool moderate(const T* largest) const {
    for (int v = 0; v < Simd<T>::kVectors; ++v) {
      const V x = V(most_[v]) * at(largest + v * Simd<T>::kLanes);
      for (int l = 0; l < Simd<T>::kLanes; ++l)
        if (!(x[l] < FloatTraits<T>::kMaxExponent)) return false;
    }
    return true;
  }

 private:
  I most_[Simd<T>::kVectors] = {};
};

// Adds up rows of a group of states over `lanes` lanes: [state][lane] -> [state].
template <class T>
void sum_lanes(const T* from, int64_t states, T* to) {
  constexpr int64_t kLanes = Simd<T>::kLanes;
  int64_t n = 0;
  if constexpr (__is_same(T, float)) {
    const auto quad = [&](int64_t state) {
      const Quad* row = reinterpret_cast<const Quad*>(from + state * kLanes);
      Quad sum = row[0];
      for (int q = 1; q < kLanes / 4; ++q) sum += row[q];
      return sum;
    };
    for (; n + 4 <= states; n += 4) {
      const Quad a = quad(n), b = quad(n + 1), c = quad(n + 2), d = quad(n + 3);
      const Quad ac = shuffle<0, 4, 1, 5>(a, c) + shuffle<2, 6, 3, 7>(a, c);
      const Quad bd = shuffle<0, 4, 1, 5>(b, d) + shuffle<2, 6, 3, 7>(b, d);
      *reinterpret_cast<Quad*>(to + n) = shuffle<0, 4, 1, 5>(ac, bd) + shuffle<2, 6, 3, 7>(ac, bd);
    }
  }
  for (; n < states; ++n) {
    T sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += from[n * kLanes + l];
    to[n] = sum;
  }
}

// Hands out pieces of a task's scratch memory, aligned to a cache line.
struct Scratch {
  // Without the gap, pieces of a whole number of pages would be read and written at the same offset
  // in a page. Depending on the physical pages behind them, a Zen 4 then takes up to twice as long:
  // the backward pass ran at one of two speeds from process to process. The gap moves apart what
  // one step reads of each piece.
  static constexpr int64_t kGapLines = 5;
  uintptr_t next;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += uintptr_t((ceil_div(count * int64_t(sizeof(T)), kLineBytes) + kGapLines) * kLineBytes);
    return piece;
  }
};

// Bytes that Pieces(memory, args...) takes.
template <class Pieces, class... Args>
int64_t bytes_of(Args... args) {
  Scratch memory{0};
  Pieces(memory, args...);
  return int64_t(memory.next);
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
