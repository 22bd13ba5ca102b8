// Layer normalisation of rows of d numbers, a warp for each row. Lane i sums the numbers i, i + 32,
// … of the row, then the lanes are added up.

__device__ inline long long first_row() {
  return (long long)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
}
__device__ inline long long row_stride() { return (long long)gridDim.x * (BLOCK / WARP); }
__device__ inline int lane() { return threadIdx.x % WARP; }

template <class T>
__global__ void layer_norm_fwd(
    const T* x, const T* scale, const T* bias, double eps, T* out, T* normalized,
    Wide<T>* inv_std, long long rows, long long d) {
  typedef Wide<T> W;
  for (long long row = first_row(); row < rows; row += row_stride()) {
    const T* values = x + row * d;
    W sum = 0;
    for (long long j = lane(); j < d; j += WARP) sum += widen(values[j]);
    W mean = warp_sum(sum) / W(d);
    // The mean is rounded when it is large against the deviation; what is left is taken off too.
    sum = 0;
    for (long long j = lane(); j < d; j += WARP) sum += widen(values[j]) - mean;
    W rest = warp_sum(sum) / W(d);
    sum = 0;
    for (long long j = lane(); j < d; j += WARP) {
      W centred = widen(values[j]) - mean - rest;
      sum += centred * centred;
    }
    W inverse = W(1) / sqrt(warp_sum(sum) / W(d) + W(eps));
    for (long long j = lane(); j < d; j += WARP) {
      T rounded;
      narrow((widen(values[j]) - mean - rest) * inverse, rounded);
      normalized[row * d + j] = rounded;
      narrow(widen(rounded) * widen(scale[j]) + widen(bias[j]), out[row * d + j]);
    }
    if (lane() == 0) inv_std[row] = inverse;
  }
}

// dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / σ with dx̂ = dout scale.
template <class T>
__global__ void layer_norm_bwd(
    const T* normalized, const Wide<T>* inv_std, const T* scale, const T* dout, T* dx,
    long long rows, long long d) {
  typedef Wide<T> W;
  for (long long row = first_row(); row < rows; row += row_stride()) {
    const T *xs = normalized + row * d, *ds = dout + row * d;
    W sum = 0, product = 0;
    for (long long j = lane(); j < d; j += WARP) {
      W slope = widen(ds[j]) * widen(scale[j]);
      sum += slope;
      product += slope * widen(xs[j]);
    }
    W mean = warp_sum(sum) / W(d), along = warp_sum(product) / W(d);
    for (long long j = lane(); j < d; j += WARP) {
      W slope = widen(ds[j]) * widen(scale[j]);
      narrow(inv_std[row] * (slope - mean - widen(xs[j]) * along), dx[row * d + j]);
    }
  }
}

// Row blockIdx.y of the partial sums gets Σ dout x̂ and Σ dout of `chunk` rows, for each column.
template <class T>
__global__ void layer_norm_columns(
    const T* normalized, const T* dout, Wide<T>* scales, Wide<T>* biases, long long rows,
    long long d, long long chunk) {
  typedef Wide<T> W;
  long long j = (long long)blockIdx.x * BLOCK + threadIdx.x;
  if (j >= d) return;
  long long start = blockIdx.y * chunk, stop = start + chunk < rows ? start + chunk : rows;
  W scale = 0, bias = 0;
  for (long long row = start; row < stop; ++row) {
    W slope = widen(dout[row * d + j]);
    scale += slope * widen(normalized[row * d + j]);
    bias += slope;
  }
  scales[blockIdx.y * d + j] = scale;
  biases[blockIdx.y * d + j] = bias;
}
