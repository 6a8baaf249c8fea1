// Measures the rate of the FMA pipes: runs vector FMA instructions, as many in flight as fill every pipe.
// limits.py compiles it with -march=native; a vector is the widest that the compiler has for this machine.
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vec __attribute__((vector_size(BYTES)));

// 12 chains: an FMA takes 4 or 5 cycles and there are 2 pipes, so 10 fill them; 12 chains, the factor and the offset
// fit the 16 registers of AVX2. Each chain has a name, as the compiler would keep an array in memory.
#define EACH_CHAIN(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define CHAINS 12
#define START(i) vec c##i = (vec){0} + (float)i;
#define STEP(i) c##i = c##i * factor + offset;
// The compiler must believe that every chain is read after every step, or it would drop the loop.
#define KEEP(i) __asm__ volatile("" : "+x"(c##i));

int fma_lanes(void) { return BYTES / 4; }

// Vector FMAs per second of the calling thread.
double fma_rate(long iterations) {
  vec chain[CHAINS];
  vec factor = (vec){0} + 0.999f, offset = (vec){0} + 1e-3f;
  EACH_CHAIN(START)
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (long k = 0; k < iterations; ++k) {
    EACH_CHAIN(STEP)
    EACH_CHAIN(KEEP)
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
  return CHAINS * (double)iterations / seconds;
}
