// The backward scan: chunks of kChunk steps from the last to the first, a thread holds kStates states of one channel.
// With q_t = g_t + C_t dy_t the gradient of the state after step t, and g_{t-1} = e_t q_t that of the state before it,
//
//     dB_t = sum_channels q_t d_t x_t        dC_t = sum_channels h_t dy_t
//     dA   = sum_t d_t g_{t-1} h_{t-1}       d(d_t) = sum_n A g_{t-1} h_{t-1} + x_t sum_n q_t B_t
//     dx_t = d_t sum_n q_t B_t + D dy_t
//
// A chunk goes through:
//     sizes       once for a channel and step: d, x, dy and what the end needs, into rows of shared memory
//     states      from the checkpoint on: decays e stay in registers, states h go to shared memory (kept)
//     dC          sums over the channels of a warp, of h dy
//     gradients   backwards in time; each h in shared memory makes room for the q of its step
//     dB          sums over the channels of a warp, of q dx
// The sums over channels read what other lanes wrote, four states at a time, and need no shuffle: a transposition in
// shared memory costs 1.5 instructions for each value and map, a butterfly 4.
//
// Issue slots for each element (one state of one channel at one step), float32, dstate 16, all options, on sm_90:
//     states      p = d a, e = 2^p, w = dx B, h = e h + w; B, h to shared memory                   4.8
//     gradients   q, y, sum q B, g, g h, sum A g h, dA; B, C, h, q through shared memory           8.7
//     dB, dC      2 products; h and q from shared memory, dx and dy for four channels at once      3.1
//     sizes       loads, softplus, gate and their slopes, rows: a 16th of 75                       4.7
//     end         dx, ddelta, dz, their stores: a 16th of 20; tiles, checkpoint, sums of warps     2.8
// so 24, and 6 more for every step between a checkpoint and the chunk, through which the states run first; hence a
// checkpoint for every chunk. No atomics: sums over blocks, samples and segments go through the workspace and are added in
// a fixed order.
#pragma once

#include "scan_common.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams, bool kGate>
struct Backward {
  static constexpr int kQuads = kStates / 4;
  static constexpr int kOwn = kChunk / kShare;        // steps of a chunk that are this lane's
  static constexpr int kBatch = kOwn < 4 ? kOwn : 4;  // of those at a time
  static constexpr int kPoints = kBatch / kStreams;   // steps of a stream in a batch
  static constexpr int kPitch = (kWarp + 1) * 4;      // floats of a row of `kept`: conflict-free along both axes
  // Decays of the last steps that are computed again, since no more of them fit the registers.
  static constexpr int kAgain = kStates < 16 ? 0 : 20;
  static constexpr int kKept = kChunk * kQuads * kPitch;
  static constexpr int kWidest = kShare == 4 ? int(kMostStates) : kShare * kStates;
  using Tiles = MapTiles<T, kChunk, kWidest>;
  // Of a thread, which has no register left for them: kBias is times log2 e, the last two are sums over chunks.
  enum OwnValue { kBias, kSkip, kSumD, kSumBias, kOwnValues };
  enum Row { kSize, kSizeX, kDy, kX, kSlope, kDgate, kRowKinds };  // of x the cross scan keeps v and t

  // Per warp: kept, rows, sums of dC, own values. Per block: the tiles of B and C.
  static __host__ __device__ constexpr int pitch_of_rows(int lanes) { return kWarp / lanes + 4; }
  static __host__ __device__ constexpr int floats_of_warp(int lanes) {
    return kKept + kRowKinds * kChunk * pitch_of_rows(lanes) + kChunk * lanes * kStates + kOwnValues * kWarp;
  }
  static constexpr size_t shared_bytes(int lanes) {
    return (kThreads / kWarp * floats_of_warp(lanes) + 2 * kChunk * lanes * kStates) * sizeof(float);
  }

  const ScanBackward& q;
  const ScanForward& p;
  Place<kStates, kShare> place;
  Tiles tiles;
  float *kept, *rows, *dC_sums, *B_tile, *C_tile;
  int64_t valid, steps, first;  // of the sample; the first step of the segment, in the order of processing
  int count;                    // steps of the segment
  Base<const T> u[kStreams], z[kStreams], dout[kStreams], delta;  // at that step
  Base<T> du[kStreams], dz[kStreams], ddelta;
  float *dB_parts, *dC_parts;  // this block's in the workspace, at that step
  float a[kStates], g[kStates], dA[kStates];

  static __device__ int64_t steps_of(const ScanForward& p, int sample) {
    return (p.lengths ? p.lengths[sample] : p.size.length) * kStreams;
  }
  static __device__ int64_t step_at(const ScanForward& p, int64_t steps, int64_t k) {
    return p.reverse ? steps - 1 - k : k;
  }

  __device__ Backward(const ScanBackward& q, const Split& split)
      : q(q),
        p(q.forward),
        place(p.size, split.segments),
        tiles(p, place.sample, place.group, place.states,
              step_at(p, steps_of(p, place.sample), place.segment * split.segment_steps)),
        steps(steps_of(p, place.sample)),
        first(place.segment * split.segment_steps) {
    valid = steps / kStreams;
    count = int(min(first + split.segment_steps, steps) - first);
    float* shared = shared_memory<float>();
    kept = warp_memory();
    rows = kept + kKept;
    dC_sums = rows + kRowKinds * kChunk * pitch_of_rows(place.lanes);
    B_tile = shared + kThreads / kWarp * floats_of_warp(place.lanes);
    C_tile = B_tile + kChunk * place.states;
  }

  __device__ float* warp_memory() const {
    return shared_memory<float>() + int(thread_again()) / kWarp * floats_of_warp(place.lanes);
  }
  __device__ float& row(Row kind, int t) const {
    return rows[(kind * kChunk + t) * pitch_of_rows(place.lanes) + place.column];
  }
  __device__ float& own_value(OwnValue kind) const {
    return dC_sums[kChunk * place.states + kind * kWarp + int(threadIdx.x) % kWarp];
  }
  __device__ float* keep(int t, int quad) const {
    return kept + (t * kQuads + quad) * kPitch + int(threadIdx.x) % kWarp * 4;
  }
  __device__ int first_own() const { return kShare == 1 ? 0 : place.lane % kShare * kOwn; }
  __device__ bool owner(int t) const { return kShare == 1 || (place.lane < kShare && place.lane == t / kOwn); }

  // The tensors at the segment's first step.
  __device__ void find_tensors() {
    const int64_t step = step_at(p, steps, first), point = p.reverse ? valid - 1 - first / kStreams : first / kStreams;
    const int64_t sample = place.sample, channel = place.first_channel;
    delta = Base<const T>(p.delta, sample, channel, step, p.reverse);
    ddelta = Base<T>(q.ddelta, sample, channel, step, p.reverse);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      u[m] = Base<const T>(p.u[m], sample, channel, point, p.reverse);
      z[m] = Base<const T>(p.z[m], sample, channel, point, p.reverse);
      dout[m] = Base<const T>(q.dout[m], sample, channel, point, p.reverse);
      du[m] = Base<T>(q.du[m], sample, channel, point, p.reverse);
      dz[m] = Base<T>(q.dz[m], sample, channel, point, p.reverse);
    }
  }
  // Which of the two streams has the output of step t of a chunk: products are stream 0's.
  __device__ int part(int t) const { return kStreams == 1 ? 0 : (t & 1) ^ int(p.reverse); }
  __device__ float token(float v, float t, int part) const { return part ? v + t : v * t; }

  static __device__ float load_if(bool in, const Walk<const T>& from, int i) {
    const T* p = &from[i];
    return in ? to_float(*p) : 0.0f;
  }

  // The rows of the chunk at k; with kSizes only d and d x, which the states need. Steps past the last one get d = dy = 0,
  // and so do threads past the last channel, which would else add to the sums over channels.
  template <bool kSizes>
  __device__ void sizes(int k) {
    const int own = first_own(), left = place.live_again() ? stride_of_lane(count - k) - own : 0;
    const Walk<const T> delta_k = delta.at(k + own, place.offset);
    Walk<const T> u_k[kStreams], z_k[kStreams], dout_k[kStreams];
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      u_k[m] = u[m].at((k + own) / kStreams, place.offset);
      if constexpr (!kSizes) {
        if constexpr (kGate) z_k[m] = z[m].at((k + own) / kStreams, place.offset);
        dout_k[m] = dout[m].at((k + own) / kStreams, place.offset);
      }
    }
#pragma unroll
    for (int begin = 0; begin < kOwn; begin += kBatch) {
      float d[kBatch], e[kBatch], slope[kBatch], x[kBatch], dy[kBatch], dgate[kBatch];
      float stream_x[kStreams][kPoints], stream_z[kStreams][kPoints], stream_dout[kStreams][kPoints];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {  // step by step, so that a predicate serves all loads of one
        const bool in = begin + i < left;
        d[i] = load_if(in, delta_k, begin + i);
        if (i % kStreams != 0) continue;
        const int point = i / kStreams, at = begin / kStreams + point;
#pragma unroll
        for (int m = 0; m < kStreams; ++m) {
          stream_x[m][point] = load_if(in, u_k[m], at);
          if constexpr (!kSizes) {
            if constexpr (kGate) stream_z[m][point] = load_if(in, z_k[m], at);
            stream_dout[m][point] = load_if(in, dout_k[m], at);
          }
        }
      }
      float w[kPoints], gate[kPoints];
      if constexpr (!kSizes) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
          dy[i] = kStreams == 2 && part(i) ? stream_dout[kStreams - 1][i / kStreams] : stream_dout[0][i / kStreams];
#pragma unroll
        for (int i = 0; i < kPoints; ++i)
          w[i] = kStreams == 1 ? stream_z[0][i] : stream_z[0][i] * stream_z[kStreams - 1][i];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) d[i] = fmaf(d[i], kLog2E, own_value(kBias)), slope[i] = 1.0f;
      if (p.delta_softplus) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) e[i] = ex2(-fabsf(d[i]));
        if constexpr (!kSizes) {
          reciprocals(e, slope);
#pragma unroll
          for (int i = 0; i < kBatch; ++i) slope[i] = sigmoid(d[i], e[i], slope[i]);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) d[i] = softplus2<T>(d[i], e[i]);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        d[i] = begin + i < left ? d[i] : 0.0f;
        slope[i] = begin + i < left ? slope[i] : 0.0f;  // so that ddelta is 0 where there is no step
        x[i] = kStreams == 1 ? stream_x[0][i / kStreams]
                             : token(stream_x[0][i / kStreams], stream_x[kStreams - 1][i / kStreams], part(i));
      }
      if constexpr (!kSizes) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) dgate[i] = 0.0f;
        if constexpr (kGate) {
          float e_gate[kPoints], r[kPoints];
#pragma unroll
          for (int i = 0; i < kPoints; ++i) e_gate[i] = exp_of_minus_magnitude(w[i]);
          reciprocals(e_gate, r);
#pragma unroll
          for (int i = 0; i < kPoints; ++i) {
            const float s = sigmoid(w[i], e_gate[i], r[i]);
            gate[i] = w[i] * s;
            const float slope_of_gate = fmaf(gate[i], 1.0f - s, s);
#pragma unroll
            for (int j = i * kStreams; j < (i + 1) * kStreams; ++j) dgate[j] = dy[j] * slope_of_gate, dy[j] *= gate[i];
          }
        }
      }
      if (kShare == 4 && place.lane >= kShare) continue;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = own + begin + i;
        row(kSize, t) = d[i];
        row(kSizeX, t) = d[i] * x[i];
        if constexpr (!kSizes) {
          row(kDy, t) = dy[i];
          row(kX, t) = kStreams == 1 ? x[i] : stream_x[i % kStreams][i / kStreams];
          row(kSlope, t) = slope[i];
          row(kDgate, t) = dgate[i];
        }
      }
    }
    __syncwarp();
  }

  // The tile of B and C of the chunk at k, for the whole block.
  __device__ void load_tile(int k) {
    tiles.load(k, count);
    __syncthreads();
    tiles.store(B_tile, C_tile);
    __syncthreads();
  }

  // Where the state before a chunk can be read again, which costs less than 16 registers: the checkpoint, or the rows in
  // which the segment's dA will be.
  __device__ float* before(const Split& split, const Partial& partial, float* checkpoint, int behind) const {
    return behind == 0 || !place.live_again() ? checkpoint
                                              : place.row(partial.dA, p.size, split.segments, place.segment);
  }

  // The state before the chunk at k, which is `behind` steps after a checkpoint.
  __device__ void restore(const Split& split, const Partial& partial, int k, float* checkpoint, int behind,
                          float (&h)[kStates]) {
    place.load_aligned(checkpoint, int(p.size.dstate), h);
    if (behind == 0) return;
    for (int back = behind; back > 0; back -= kChunk) {
      load_tile(k - back);
      sizes<true>(k - back);
#pragma unroll 2
      for (int t = 0; t < kChunk; ++t) {
        const float d = row(kSize, t), dx = row(kSizeX, t);
#pragma unroll
        for (int i = 0; i < kStates; i += 4) {
          const float4 b = load_vector<float4>(B_tile + t * place.states + place.state(i));
          h[i] = fmaf(ex2(d * a[i]), h[i], dx * b.x);
          h[i + 1] = fmaf(ex2(d * a[i + 1]), h[i + 1], dx * b.y);
          h[i + 2] = fmaf(ex2(d * a[i + 2]), h[i + 2], dx * b.z);
          h[i + 3] = fmaf(ex2(d * a[i + 3]), h[i + 3], dx * b.w);
        }
      }
      __syncwarp();
    }
    place.store(before(split, partial, checkpoint, behind), int(p.size.dstate), h);
  }

  // sums[t][n] = sum over the warp's channels of kept[t][n] * row[t], times scale. A pass over `at` writes 128 floats
  // behind those of the passes before it, and reads rows of 132 floats of which each pass needs at least one.
  __device__ void sum_channels(Row kind, float scale, bool in_place) const {
    float* const kept = warp_memory();
    const float* const rows = kept + kKept;
    float* const sums = in_place ? kept : kept + kKept + kRowKinds * kChunk * pitch_of_rows(place.lanes);
    const int quads = place.states / 4, columns = kWarp / place.lanes, pitch = pitch_of_rows(place.lanes);
    // With eight states there are fewer sums than lanes: two lanes share one.
    constexpr int kParts = kShare == 1 && kStates == 8 ? 2 : 1;
    const int lane = int(thread_again()) % kWarp, part = kParts == 1 ? 0 : lane / (kWarp / kParts);
    const int passes = kShare == 1 ? 1 : place.lanes;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      const int at = pass * kWarp + lane % (kWarp / kParts);
      const int t = at / quads, quad = at % quads;
      const float* from = kept + (t * kQuads + quad / place.lanes) * kPitch + quad % place.lanes * columns * 4;
      const float* factor = rows + (kind * kChunk + t) * pitch;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if constexpr (kShare < 4) {
        constexpr int kColumns = kWarp / kShare / kParts;
#pragma unroll
        for (int c = 0; c < kColumns; c += 4) {
          const float4 f = load_vector<float4>(factor + part * kColumns + c);
          const float* x = from + (part * kColumns + c) * 4;
          sum = add(sum, f.x, x), sum = add(sum, f.y, x + 4), sum = add(sum, f.z, x + 8), sum = add(sum, f.w, x + 12);
        }
      } else {
        for (int c = 0; c < columns; ++c) sum = add(sum, factor[c], from + c * 4);
      }
      if constexpr (kParts == 2) {
        constexpr int kHalf = kWarp / 2;
        sum.x += __shfl_xor_sync(kAllLanes, sum.x, kHalf), sum.y += __shfl_xor_sync(kAllLanes, sum.y, kHalf);
        sum.z += __shfl_xor_sync(kAllLanes, sum.z, kHalf), sum.w += __shfl_xor_sync(kAllLanes, sum.w, kHalf);
      }
      __syncwarp();  // `sums` may be where `kept` is: a pass overwrites only what it and those before it have read
      if (part == 0)
        store_vector(sums + at * 4, make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale));
    }
  }
  static __device__ float4 add(float4 sum, float f, const float* p) {
    const float4 x = load_vector<float4>(p);
    return make_float4(fmaf(f, x.x, sum.x), fmaf(f, x.y, sum.y), fmaf(f, x.z, sum.z), fmaf(f, x.w, sum.w));
  }

  // The sums of the block's warps, in their order, to the workspace. Those of dB lie where `kept` was.
  __device__ void sum_warps(int k) const {
    const int dstate = int(p.size.dstate), floats = floats_of_warp(place.lanes);
    const int of_dC = kKept + kRowKinds * kChunk * pitch_of_rows(place.lanes);
    const float* shared = shared_memory<float>();
    for (int at = threadIdx.x; at < kChunk * place.states; at += kThreads) {
      const int t = at / place.states, n = at % place.states;
      float dB = 0.0f, dC = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kThreads / kWarp; ++warp) {
        dB += shared[warp * floats + at];
        dC += shared[warp * floats + of_dC + at];
      }
      if (n < dstate && k + t < count) {
        *step_on(dB_parts + n, k + t, p.reverse ? -dstate : dstate) = dB;
        *step_on(dC_parts + n, k + t, p.reverse ? -dstate : dstate) = dC;
      }
    }
  }

  __device__ float sum_over_lanes(float y) const {
    if constexpr (kShare > 1) {
      for (int o = kWarp / place.lanes; o < kWarp; o *= 2) y += __shfl_xor_sync(kAllLanes, y, o);
    }
    return y;
  }

  // What step t of a chunk adds to each gradient, from y = sum C h, qB = sum q B ln 2 and dd = sum A g h.
  // Steps come backwards, so of a pair the second one first: it leaves its share behind.
  struct Sums {
    float pair_dx = 0.0f, pair_dgate = 0.0f, dD = 0.0f, dbias = 0.0f;
  };
  // The chunk's places in the results, and how many of its steps are there to be written to.
  struct Outputs {
    Walk<T> ddelta, du[kStreams], dz;
    int k, left;
  };
  __device__ Outputs outputs(int k) const {
    Outputs to;
    to.ddelta = ddelta.at(k, place.offset);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      to.du[m] = du[m].at(k / kStreams, place.offset);
    }
    if constexpr (kStreams == 1) to.dz = dz[0].at(k, place.offset);
    if constexpr (kStreams == 2) to.k = k;
    to.left = place.live_again() ? count - k : 0;
    return to;
  }
  static __device__ void store_if(bool in, const Walk<T>& to, int i, float x) {
    T* p = &to[i];
    if (in) *p = from_float<T>(x);
  }
  __device__ void finish(const Outputs& to, int t, float y, float qB, float dd, Sums& sums) const {
    const float d = row(kSize, t), dy = row(kDy, t);
    float x, v = 0.0f, u = 0.0f;
    if constexpr (kStreams == 1) {
      x = row(kX, t);
    } else {
      v = row(kX, t & ~1), u = row(kX, t | 1);
      x = token(v, u, part(t));
    }
    const bool in = t < to.left;
    const float skip = own_value(kSkip);
    const float ddelta_t = fmaf(qB, x * kLog2E, dd) * row(kSlope, t), dx = fmaf(d, qB, skip * dy);
    y = fmaf(skip, x, y);
    const float dgate = y * row(kDgate, t);
    sums.dD = fmaf(dy, x, sums.dD);
    sums.dbias += ddelta_t;
    store_if(in, to.ddelta, t, ddelta_t);
    if constexpr (kStreams == 1) {
      store_if(in, to.du[0], t, dx);
      if constexpr (kGate) store_if(in, to.dz, t, dgate);
    } else if (t % 2 == 1) {
      sums.pair_dx = dx, sums.pair_dgate = dgate;
    } else {
      const float dp = p.reverse ? sums.pair_dx : dx, ds = p.reverse ? dx : sums.pair_dx;
      store_if(in, to.du[0], t / 2, fmaf(u, dp, ds));
      store_if(in, to.du[1], t / 2, fmaf(v, dp, ds));
      if (kGate && in) {
        // Their places are found here: held from the start of the chunk they would take 12 registers.
        const int at = (to.k + t) / kStreams;
        const float dw = dgate + sums.pair_dgate;
        const float z0 = to_float(z[0].at(at, place.offset)[0]), z1 = to_float(z[1].at(at, place.offset)[0]);
        dz[0].at(at, place.offset)[0] = from_float<T>(dw * z1);
        dz[1].at(at, place.offset)[0] = from_float<T>(dw * z0);
      }
    }
    row(kDgate, t) = y;  // for output()
  }

  // The forward's output of the chunk at k again, for callers that did not keep it.
  __device__ void output(int k) const {
    if (!place.live_again()) return;
#pragma unroll 1
    for (int t = 0; t < kChunk && k + t < count; ++t) {
      if (!owner(t)) continue;
      const int at = (k + t) / kStreams;
      float y = row(kDgate, t);
      if constexpr (kGate) {
        float w = to_float(z[0].at(at, place.offset)[0]);
        if constexpr (kStreams == 2) w *= to_float(z[1].at(at, place.offset)[0]);
        const float e[1] = {exp_of_minus_magnitude(w)};
        float r[1];
        reciprocals(e, r);
        y *= silu(w, e[0], r[0]);
      }
      const int64_t point = (first + k + t) / kStreams;
      *Walk<T>(p.out[part(t)], place.sample, place.channel, p.reverse ? valid - 1 - point : point, false).p =
          from_float<T>(y);
    }
  }

  __device__ void chunk(const Split& split, const Partial& partial, int k, float* checkpoint, int behind) {
    float h[kStates], e[kChunk][kStates];
    restore(split, partial, k, checkpoint, behind, h);
    load_tile(k);
    sizes<false>(k);
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      const float d = row(kSize, t), dx = row(kSizeX, t);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 b = load_vector<float4>(B_tile + t * place.states + place.state(i));
#pragma unroll
        for (int j = i; j < i + 4; ++j) e[t][j] = ex2(d * a[j]);
        h[i] = fmaf(e[t][i], h[i], dx * b.x), h[i + 1] = fmaf(e[t][i + 1], h[i + 1], dx * b.y);
        h[i + 2] = fmaf(e[t][i + 2], h[i + 2], dx * b.z), h[i + 3] = fmaf(e[t][i + 3], h[i + 3], dx * b.w);
        store_vector(keep(t, i / 4), make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]));
      }
    }
    __syncwarp();
    sum_channels(kDy, 1.0f, false);
    __syncwarp();

    const Outputs to = outputs(k);
    Sums sums;
    float h_first[kStates];  // before the chunk
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      if (t == 2)  // on its way while two steps run
        place.load_aligned(before(split, partial, checkpoint, behind), int(p.size.dstate), h_first);
      const float d = row(kSize, t), dy = row(kDy, t);
      float y = 0.0f, qB = 0.0f, dd = 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = t * place.states + place.state(i);
        const float4 b = load_vector<float4>(B_tile + at), c = load_vector<float4>(C_tile + at);
        const float4 h_before = t > 0 ? load_vector<float4>(keep(t - 1, i / 4))
                                      : make_float4(h_first[i], h_first[i + 1], h_first[i + 2], h_first[i + 3]);
        if ((kChunk - 1 - t) * kStates + i < kAgain) {
#pragma unroll
          for (int j = i; j < i + 4; ++j) e[t][j] = ex2(d * a[j]);
        }
        float4 dh;
        dh.x = gradient(i, d, dy, e[t][i], b.x, c.x, h_before.x, h[i], y, qB, dd);
        dh.y = gradient(i + 1, d, dy, e[t][i + 1], b.y, c.y, h_before.y, h[i + 1], y, qB, dd);
        dh.z = gradient(i + 2, d, dy, e[t][i + 2], b.z, c.z, h_before.z, h[i + 2], y, qB, dd);
        dh.w = gradient(i + 3, d, dy, e[t][i + 3], b.w, c.w, h_before.w, h[i + 3], y, qB, dd);
        store_vector(keep(t, i / 4), dh);
      }
      y = sum_over_lanes(y), qB = sum_over_lanes(qB), dd = sum_over_lanes(dd);
      if (owner(t)) finish(to, t, y, qB, dd, sums);
    }
    own_value(kSumD) += sums.dD;
    own_value(kSumBias) += sums.dbias;
    __syncwarp();
    sum_channels(kSizeX, kLn2, true);
    if (p.out[0].data) output(k);
    __syncthreads();
    sum_warps(k);
  }

  // One state at one step; h becomes that before the step. -> q
  __device__ float gradient(int i, float d, float dy, float e, float b, float c, float h_before, float& h, float& y,
                            float& qB, float& dd) {
    const float dh = fmaf(c, dy, g[i]);
    y = fmaf(c, h, y);
    qB = fmaf(dh, b, qB);
    g[i] = e * dh;
    const float gh = g[i] * h_before;
    dd = fmaf(a[i], gh, dd);
    dA[i] = fmaf(d, gh, dA[i]);
    h = h_before;
    return dh;
  }

  // What the chunk at k adds to the carry, and the sum of its step sizes.
  __device__ float summarize(int k) {
    float sum = 0.0f;
    load_tile(k);
    sizes<false>(k);
#pragma unroll 2
    for (int t = kChunk - 1; t >= 0; --t) {
      const float d = row(kSize, t), dy = row(kDy, t);
      if (owner(t)) sum += d;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 c = load_vector<float4>(C_tile + t * place.states + place.state(i));
        g[i] = ex2(d * a[i]) * fmaf(c.x, dy, g[i]), g[i + 1] = ex2(d * a[i + 1]) * fmaf(c.y, dy, g[i + 1]);
        g[i + 2] = ex2(d * a[i + 2]) * fmaf(c.z, dy, g[i + 2]), g[i + 3] = ex2(d * a[i + 3]) * fmaf(c.w, dy, g[i + 3]);
      }
    }
    return sum;
  }

  __device__ void run(const Split& split, const Partial& partial) {
    const int dstate = int(p.size.dstate);
    const int64_t channel = place.channel, slot = place.sample * split.segments + place.segment;
    place.load(static_cast<const float*>(p.A) + channel * dstate, dstate, a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) g[i] = dA[i] = 0.0f;
    own_value(kBias) = p.delta_bias ? static_cast<const float*>(p.delta_bias)[channel] * kLog2E : 0.0f;
    own_value(kSumD) = own_value(kSumBias) = 0.0f;
    own_value(kSkip) = p.D ? static_cast<const float*>(p.D)[channel] : 0.0f;
    find_tensors();
    const int64_t row = ((place.tile * p.size.batch + place.sample) * p.size.ngroups + place.group) * p.size.steps;
    dB_parts = partial.dB + (row + step_at(p, steps, first)) * dstate;
    dC_parts = partial.dC + (row + step_at(p, steps, first)) * dstate;
    const int last = (count + kChunk - 1) / kChunk * kChunk - kChunk;

    if (split.summary) {
      float sum = 0.0f;
      for (int k = last; k >= 0; k -= kChunk) sum += summarize(k);
      sum = sum_over_lanes(sum);
      place.store(split.states + (slot * p.size.dim + channel) * dstate, dstate, g);
      if (place.live && place.lane == 0) split.sums[slot * p.size.dim + channel] = sum;
      return;
    }
    if (split.states) {
      place.load(split.states + (slot * p.size.dim + channel) * dstate, dstate, g);
    } else if (q.dlast_state) {
      place.load(place.row(static_cast<const float*>(q.dlast_state), p.size, 1, 0), dstate, g);
    }
    const int every = int(p.size.checkpoint_every);
    const int64_t checkpoint = (first + max(last, 0)) / every;
    float* at = place.row(static_cast<float*>(p.checkpoints), p.size, p.size.nchunks, checkpoint);
    int behind = max(last, 0) % every;
#pragma unroll 1
    for (int k = last; k >= 0; k -= kChunk) {
      chunk(split, partial, k, at, behind);
      behind -= kChunk;
      if (behind < 0) behind += every, at -= p.size.dim * dstate;
    }

    const float dD = sum_over_lanes(own_value(kSumD)), dbias = sum_over_lanes(own_value(kSumBias));
    finish_segment(Place<kStates, kShare>(p.size, split.segments), split, partial, dD, dbias);
  }

  // Results of the whole segment; all that the place is made of was not kept while it ran.
  __device__ void finish_segment(const Place<kStates, kShare>& place, const Split& split, const Partial& partial,
                                 float dD, float dbias) {
    const int dstate = int(p.size.dstate);
    const int64_t channel = (place.sample * split.segments + place.segment) * p.size.dim + place.channel;
    if (q.dinitial_state && !split.states)
      place.store(place.row(static_cast<float*>(q.dinitial_state), p.size, 1, 0), dstate, g);
#pragma unroll
    for (int i = 0; i < kStates; ++i) dA[i] *= kLn2;
    place.store(partial.dA + channel * dstate, dstate, dA);
    if (!place.live || place.lane > 0) return;
    partial.dD[channel] = dD;
    partial.dbias[channel] = dbias;
    const int64_t steps = steps_of(p, place.sample), valid = steps / kStreams,
                  first = place.segment * split.segment_steps;
    const int64_t begin = first / kStreams, end = min(begin + split.segment_steps / kStreams, p.size.length);
    for (int m = 0; m < kStreams; ++m)
      for (const Out* x : {&q.du[m], &q.dz[m], &p.out[m]})
        clear_steps<T>(*x, place.sample, place.channel, max(begin, valid), end);
    clear_steps<T>(q.ddelta, place.sample, place.channel, max(first, steps),
                   min(first + split.segment_steps, p.size.steps));
  }
};

template <class T, int kStates, int kShare, int kStreams, bool kGate>
__global__ void __launch_bounds__(kThreads, 2)
    scan_backward_kernel(const ScanBackward q, const Split split, const Partial partial) {
  Backward<T, kStates, kShare, kStreams, kGate>(q, split).run(split, partial);
}

// dB and dC, one thread for each element: the sums of the tiles, zero at steps past the sample's own.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_tiles_kernel(const ScanBackward q, const Partial partial, int64_t tiles) {
  const ScanSizes& s = q.forward.size;
  const int64_t per_sample = s.steps * s.ngroups * s.dstate, size = s.batch * per_sample;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int64_t sample = at / per_sample, n = at % s.dstate, group = at / s.dstate % s.ngroups;
  const int64_t step = at % per_sample / (s.ngroups * s.dstate);
  const int64_t from = ((sample * s.ngroups + group) * s.steps + step) * s.dstate + n;
  const int64_t* lengths = q.forward.lengths;
  float dB = 0.0f, dC = 0.0f;
  if (!lengths || step < lengths[sample] * q.forward.streams) {
    for (int64_t i = 0; i < tiles; ++i) dB += partial.dB[i * size + from], dC += partial.dC[i * size + from];
  }
  static_cast<T*>(q.dB)[at] = from_float<T>(dB);
  static_cast<T*>(q.dC)[at] = from_float<T>(dC);
}

template <class T, int kStates, int kShare, int kStreams, bool kGate>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  launch(scan_backward_kernel<T, kStates, kShare, kStreams, kGate>, dim3(unsigned(plan.blocks(q.forward.size))),
         dim3(kThreads), Backward<T, kStates, kShare, kStreams, kGate>::shared_bytes(int(plan.lanes)), stream, q, split,
         partial);
}

template <class T, int kStreams, bool kGate>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  if (plan.states == 8) return launch_backward<T, 8, 1, kStreams, kGate>(q, plan, split, partial, stream);
  if (plan.lanes == 1) return launch_backward<T, 16, 1, kStreams, kGate>(q, plan, split, partial, stream);
  if (plan.lanes == 2) return launch_backward<T, 16, 2, kStreams, kGate>(q, plan, split, partial, stream);
  return launch_backward<T, 16, 4, kStreams, kGate>(q, plan, split, partial, stream);
}

template <class T>
void launch_backward(const ScanBackward& q, const ScanPlan& plan, const Split& split, const Partial& partial,
                     void* stream) {
  const bool one = q.forward.streams == 1;
  const auto run = q.forward.z[0].data ? (one ? launch_backward<T, 1, true> : launch_backward<T, 2, true>)
                                       : (one ? launch_backward<T, 1, false> : launch_backward<T, 2, false>);
  run(q, plan, split, partial, stream);
}

template <class T>
void launch_sum_tiles(const ScanBackward& q, const ScanPlan& plan, const Partial& partial, void* stream) {
  const ScanSizes& s = q.forward.size;
  const int64_t size = s.batch * s.steps * s.ngroups * s.dstate;
  if (size == 0) return;
  launch(sum_tiles_kernel<T>, dim3(unsigned(ceil_div(size, kThreads))), dim3(kThreads), 0, stream, q, partial,
         plan.tiles_per_group);
}

}  // namespace cmimtl::cuda
