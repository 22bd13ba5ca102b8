// What a CUDA kernel needs in order to run on the host, compiled by a C++ compiler.
//
// The threads of a block are fibers, resumed one after the other in rounds; a barrier or a warp
// shuffle ends a thread's part of the round. So barriers mean what they mean on a device, and as the
// order within a round can be turned round, a missing one shows as a difference between the orders.
// A barrier that not every thread of the block reaches in the same round is an error, and so is a
// shuffle that not every lane of the warp reaches.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

using std::exp;
using std::fabs;
using std::log1p;
using std::sqrt;

struct Dim3 { unsigned x, y, z; };
static Dim3 blockIdx, threadIdx, gridDim;

inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline float half_to_float(unsigned short bits) { _Float16 x; memcpy(&x, &bits, 2); return x; }
inline unsigned short float_to_half(float x) {
  _Float16 half = (_Float16)x;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}

namespace host {

enum class Stop { none, barrier, shuffle, finished };

constexpr size_t STACK = 64 * 1024;
constexpr unsigned LANES = 32;

struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[STACK]};
  Stop stop;
};

static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static unsigned current;
static double exchanged[1024];
static void (*body)(void**);
static void** arguments;

inline void yield(Stop why) {
  unsigned self = current;
  fibers[self].stop = why;
  if (_setjmp(fibers[self].resume) == 0) _longjmp(scheduler, 1);
}

// setcontext enters a fiber; from then on jumps do, which make no system call.
inline void resume(unsigned i) {
  current = i;
  threadIdx = {i, 0, 0};
  if (_setjmp(scheduler) != 0) return;
  if (fibers[i].stop == Stop::none) setcontext(&fibers[i].context);
  _longjmp(fibers[i].resume, 1);
}

inline void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

inline void entry() {
  body(arguments);
  yield(Stop::finished);
}

// All lanes of a warp stopped alike, and if any thread is at a barrier, all of the block are.
inline void check_round(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    Stop lane = fibers[i].stop, first = fibers[i - i % LANES].stop;
    if ((lane == Stop::shuffle) != (first == Stop::shuffle))
      fail("a warp shuffle was not reached by all lanes");
    if ((lane == Stop::barrier) != (fibers[0].stop == Stop::barrier))
      fail("a barrier was not reached by all threads");
  }
}

inline void run_block(unsigned threads, bool backwards) {
  while (fibers.size() < threads) fibers.emplace_back();
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack.get();
    fibers[i].context.uc_stack.ss_size = STACK;
    fibers[i].context.uc_link = nullptr;
    fibers[i].stop = Stop::none;
    makecontext(&fibers[i].context, entry, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (unsigned turn = 0; turn < threads; ++turn) {
      unsigned i = backwards ? threads - 1 - turn : turn;
      if (fibers[i].stop == Stop::finished) continue;
      resume(i);
      alive = alive || fibers[i].stop != Stop::finished;
    }
    check_round(threads);
  }
}

template <class... P, size_t... I>
void apply(void (*kernel)(P...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(values[I])...);
}

template <class... P> void call(void (*kernel)(P...), void** values) {
  apply(kernel, values, std::index_sequence_for<P...>());
}

inline void launch(
    void (*run)(void**), unsigned x, unsigned y, unsigned threads, bool backwards, void** values) {
  body = run;
  arguments = values;
  gridDim = {x, y, 1};
  for (unsigned j = 0; j < y; ++j)
    for (unsigned i = 0; i < x; ++i) {
      blockIdx = {i, j, 0};
      run_block(threads, backwards);
    }
}

}  // namespace host

inline void __syncthreads() { host::yield(host::Stop::barrier); }

template <class W> inline W __shfl_xor_sync(unsigned, W x, int other) {
  unsigned self = host::current;
  host::exchanged[self] = x;
  host::yield(host::Stop::shuffle);
  W received = W(host::exchanged[self ^ unsigned(other)]);
  host::yield(host::Stop::shuffle);
  return received;
}
