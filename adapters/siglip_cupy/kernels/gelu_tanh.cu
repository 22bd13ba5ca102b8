// The GELU in its tanh form: x sigmoid(v) with v = 2 sqrt(2/π) x (1 + 0.044715 x²).

template <class W> __device__ inline W gelu_tanh(W x) {
  const W twice_sqrt_2_over_pi = W(1.5957691216057308), cubic = W(0.044715);
  return x * sigmoid(twice_sqrt_2_over_pi * (x * (W(1) + cubic * (x * x))));
}

// s (1 + x (1 - s) v') with s = sigmoid(v).
template <class W> __device__ inline W gelu_tanh_slope(W x) {
  const W twice_sqrt_2_over_pi = W(1.5957691216057308), cubic = W(0.044715);
  W square = x * x;
  W s = sigmoid(twice_sqrt_2_over_pi * (x * (W(1) + cubic * square)));
  W dv = twice_sqrt_2_over_pi * (W(1) + W(3) * cubic * square);
  return s * (W(1) + x * (W(1) - s) * dv);
}

template <class T> __global__ void gelu_tanh_fwd(const T* x, T* out, long long count) {
  long long stride = (long long)gridDim.x * BLOCK;
  for (long long i = (long long)blockIdx.x * BLOCK + threadIdx.x; i < count; i += stride)
    narrow(gelu_tanh(widen(x[i])), out[i]);
}

template <class T>
__global__ void gelu_tanh_bwd(const T* x, const T* dout, T* dx, long long count) {
  long long stride = (long long)gridDim.x * BLOCK;
  for (long long i = (long long)blockIdx.x * BLOCK + threadIdx.x; i < count; i += stride)
    narrow(widen(dout[i]) * gelu_tanh_slope(widen(x[i])), dx[i]);
}
