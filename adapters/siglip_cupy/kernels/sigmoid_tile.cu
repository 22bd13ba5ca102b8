// The sigmoid loss of one tile of pairs, from its cosines.

template <class W> struct PairNll { W nll, dnll; };

// nll  = log1p(exp(-|logit|)) + (|logit| - label logit) / 2
// dnll = (1 - label)/2 sigmoid(logit) - (1 + label)/2 sigmoid(-logit)
// with one exponential: e = exp(-|logit|), sigmoid(|logit|) = 1/(1 + e), sigmoid(-|logit|) = e/(1 + e).
template <class W> __device__ inline PairNll<W> pair_nll(W logit, W label) {
  W magnitude = fabs(logit);
  W e = exp(-magnitude);
  W near = W(1) / (W(1) + e), far = e / (W(1) + e);
  W rising = logit < W(0) ? far : near, falling = logit < W(0) ? near : far;
  PairNll<W> pair;
  pair.nll = log1p(e) + (magnitude - label * logit) / W(2);
  pair.dnll = (W(1) - label) / W(2) * rising - (W(1) + label) / W(2) * falling;
  return pair;
}

// The element of a tile: writes dnll and adds nll, dnll · t cosine and dnll to the thread's sums.
template <class W, class G>
__device__ inline void visit_pair(
    W cosine, W t, W b, W label, W weight, G& dlogit, W* sums) {
  W scaled = t * cosine;
  PairNll<W> pair = pair_nll(scaled + b, label);
  W dnll = weight * pair.dnll;
  narrow(dnll, dlogit);
  sums[0] += weight * pair.nll;
  sums[1] += dnll * scaled;
  sums[2] += dnll;
}

// Row number blockIdx.x of `partials` gets the sums of a block.
template <class W> __device__ inline void write_partials(const W* sums, double* partials) {
  __shared__ double shared[BLOCK];
  for (int which = 0; which < 3; ++which) {
    block_sum(double(sums[which]), shared);
    if (threadIdx.x == 0) partials[3 * (long long)blockIdx.x + which] = shared[0];
    __syncthreads();
  }
}

// Pair (i, j) matches if rows[i] == columns[j]. A block takes every gridDim.x-th row. `dlogits` may
// be `cosines`: an element is read before it is written, by the same thread.
template <class W, class G>
__global__ void sigmoid_tile(
    const W* cosines, G* dlogits, const W* t_prime, const W* b, const long long* rows,
    const long long* columns, long long n, long long m, double* partials) {
  W t = exp(*t_prime), bias = *b, sums[3] = {W(0), W(0), W(0)};
  for (long long i = blockIdx.x; i < n; i += gridDim.x)
    for (long long j = threadIdx.x; j < m; j += BLOCK) {
      W label = rows[i] == columns[j] ? W(1) : W(-1);
      visit_pair(cosines[i * m + j], t, bias, label, W(1), dlogits[i * m + j], sums);
    }
  write_partials(sums, partials);
}

// The same with a label for each pair, and a weight unless `weights` is null.
template <class W, class G>
__global__ void sigmoid_tile_targets(
    const W* cosines, G* dlogits, const W* t_prime, const W* b, const W* labels, const W* weights,
    long long n, long long m, double* partials) {
  W t = exp(*t_prime), bias = *b, sums[3] = {W(0), W(0), W(0)};
  for (long long i = blockIdx.x; i < n; i += gridDim.x)
    for (long long j = threadIdx.x; j < m; j += BLOCK) {
      long long at = i * m + j;
      W weight = weights ? weights[at] : W(1);
      visit_pair(cosines[at], t, bias, labels[at], weight, dlogits[at], sums);
    }
  write_partials(sums, partials);
}

// totals += the sum of `count` rows of partials, in a fixed order; one block.
__global__ void add_partials(const double* partials, long long count, double* totals) {
  __shared__ double shared[BLOCK];
  for (int which = 0; which < 3; ++which) {
    double sum = 0;
    for (long long row = threadIdx.x; row < count; row += BLOCK) sum += partials[3 * row + which];
    block_sum(sum, shared);
    if (threadIdx.x == 0) totals[which] += shared[0];
    __syncthreads();
  }
}
