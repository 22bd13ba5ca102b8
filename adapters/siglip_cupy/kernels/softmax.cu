// The softmax of rows of d numbers, a warp for each row, from scores in the wide type.

template <class T>
__global__ void softmax_fwd(const Wide<T>* scores, T* out, long long rows, long long d) {
  typedef Wide<T> W;
  for (long long row = first_row(); row < rows; row += row_stride()) {
    const W* values = scores + row * d;
    W largest = values[0];
    for (long long j = lane(); j < d; j += WARP)
      largest = values[j] > largest || values[j] != values[j] ? values[j] : largest;
    largest = warp_max(largest);
    W sum = 0;
    for (long long j = lane(); j < d; j += WARP) sum += exp(values[j] - largest);
    sum = warp_sum(sum);
    for (long long j = lane(); j < d; j += WARP)
      narrow(exp(values[j] - largest) / sum, out[row * d + j]);
  }
}

// dscores = out (dout - Σ out dout).
template <class T>
__global__ void softmax_bwd(
    const T* out, const Wide<T>* dout, T* dscores, long long rows, long long d) {
  typedef Wide<T> W;
  for (long long row = first_row(); row < rows; row += row_stride()) {
    const T* ys = out + row * d;
    const W* ds = dout + row * d;
    W sum = 0;
    for (long long j = lane(); j < d; j += WARP) sum += widen(ys[j]) * ds[j];
    sum = warp_sum(sum);
    for (long long j = lane(); j < d; j += WARP) {
      W weighted = widen(ys[j]) * ds[j];
      narrow(weighted - widen(ys[j]) * sum, dscores[row * d + j]);
    }
  }
}
