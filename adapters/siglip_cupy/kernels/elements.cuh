// What all kernels use: 16-bit floats, the sigmoid, and sums over a warp or a block.
//
// Nothing is included: NVRTC compiles this as it stands, and so does a C++ compiler on the host
// behind tests/cupy_stand_in/cuda_on_host.h. Arithmetic runs in Wide<T>, double for double and float
// for the rest; order and form of the operations are those of the core's formulas.

struct Float16 { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

template <class T> struct WideOf { typedef float type; };
template <> struct WideOf<double> { typedef double type; };
template <class T> using Wide = typename WideOf<T>::type;

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Float16 x) { return half_to_float(x.bits); }
__device__ inline float widen(BFloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void narrow(double x, double& out) { out = x; }
__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(float x, Float16& out) { out.bits = float_to_half(x); }
__device__ inline void narrow(float x, BFloat16& out) {
  // To the nearest, ties to even; adding to the bits would turn some NaN into infinity.
  unsigned bits = __float_as_uint(x);
  out.bits = x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fffu;
}

// Largest x with a finite exp(x), less 1: log(max) - 1.
__device__ inline float exp_limit(float) { return 87.722839f; }
__device__ inline double exp_limit(double) { return 708.78271289338397; }

template <class W> __device__ inline W sigmoid(W x) {
  W limit = exp_limit(x);
  return W(1) / (W(1) + exp(-x > limit ? limit : -x));
}

constexpr int WARP = 32;
constexpr int BLOCK = 256;

// The sum over the lanes of a warp, the same in each: lane i adds that of lane i ^ 16, 8, 4, 2, 1.
template <class W> __device__ inline W warp_sum(W x) {
  for (int other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

template <class W> __device__ inline W warp_max(W x) {
  for (int other = WARP / 2; other > 0; other /= 2) {
    W y = __shfl_xor_sync(0xffffffffu, x, other);
    x = y > x || y != y ? y : x;  // NaN stays
  }
  return x;
}

// One double of each thread of a block added up in a tree; thread 0 has the sum in shared[0].
__device__ inline void block_sum(double x, double* shared) {
  shared[threadIdx.x] = x;
  for (unsigned half = BLOCK / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
}
