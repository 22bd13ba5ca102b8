"""The kernels' arithmetic in NumPy, in the same dtype and the same order of operations."""

import numpy as np

WARP, BLOCK = 32, 256


def wide(x):
    """In the dtype in which the kernels compute."""
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def exp_limit(x):
    """log(max) - 1, as the core's sigmoid has it."""
    return np.log(np.finfo(x.dtype).max) - np.asarray(1, dtype=x.dtype)


def sigmoid(x):
    return 1 / (1 + np.exp(np.minimum(-x, exp_limit(x))))


def pair_nll(logits, labels):
    magnitude = np.abs(logits)
    e = np.exp(-magnitude)
    near, far = 1 / (1 + e), e / (1 + e)
    rising, falling = np.where(logits < 0, far, near), np.where(logits < 0, near, far)
    nll = np.log1p(e) + (magnitude - labels * logits) / 2
    return nll, (1 - labels) / 2 * rising - (1 + labels) / 2 * falling


def sigmoid_tile(cosines, t_prime, b, labels, weights=None):
    """dnll, and the sums of nll, dnll · t cosine and dnll in float64."""
    scaled = np.exp(t_prime) * cosines
    nll, dnll = pair_nll(scaled + b, labels)
    if weights is not None:
        nll, dnll = weights * nll, weights * dnll
    return dnll, np.asarray([np.sum(x, dtype=np.float64) for x in (nll, dnll * scaled, dnll)])


def gelu_tanh_fwd(x):
    y = wide(x)
    c, cubic = y.dtype.type(1.5957691216057308), y.dtype.type(0.044715)
    return (y * sigmoid(c * (y * (1 + cubic * (y * y))))).astype(x.dtype)


def gelu_tanh_bwd(x, dout):
    y = wide(x)
    c, cubic = y.dtype.type(1.5957691216057308), y.dtype.type(0.044715)
    square = y * y
    s = sigmoid(c * (y * (1 + cubic * square)))
    dv = c * (1 + 3 * cubic * square)
    return (wide(dout) * (s * (1 + y * (1 - s) * dv))).astype(x.dtype)


def warp_sum(rows):
    """The sums of rows as a warp forms them: lane i those of i, i + 32, …, then pairs of lanes."""
    count, d = rows.shape
    padded = np.zeros((count, -(-d // WARP) * WARP), dtype=rows.dtype)
    padded[:, :d] = rows
    lanes = np.zeros((count, WARP), dtype=rows.dtype)
    for part in np.split(padded, padded.shape[1] // WARP, axis=1):
        lanes = lanes + part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes


def layer_norm_fwd(x, scale, bias, eps):
    y, d = wide(x), wide(x).dtype.type(x.shape[1])
    mean = warp_sum(y) / d
    rest = warp_sum(y - mean) / d
    centred = y - mean - rest
    inv_std = 1 / np.sqrt(warp_sum(centred * centred) / d + y.dtype.type(eps))
    normalized = (centred * inv_std).astype(x.dtype)
    out = (wide(normalized) * wide(scale) + wide(bias)).astype(x.dtype)
    return out, normalized, inv_std


def layer_norm_bwd(normalized, inv_std, scale, dout):
    xs, slope = wide(normalized), wide(dout) * wide(scale)
    d = xs.dtype.type(xs.shape[1])
    mean, along = warp_sum(slope) / d, warp_sum(slope * xs) / d
    return (inv_std * (slope - mean - xs * along)).astype(dout.dtype)


def layer_norm_columns(normalized, dout, chunk):
    """Σ dout x̂ and Σ dout of each `chunk` of rows, added up row by row."""
    products, slopes = wide(dout) * wide(normalized), wide(dout)
    starts = range(0, len(dout), chunk)
    return tuple(
        np.stack([np.add.accumulate(x[start : start + chunk], axis=0)[-1] for start in starts])
        for x in (products, slopes)
    )


def softmax_fwd(scores, dtype):
    e = np.exp(scores - np.max(scores, axis=1, keepdims=True))
    return (e / warp_sum(e)).astype(dtype)


def softmax_bwd(out, dout):
    weighted = wide(out) * dout
    return (weighted - wide(out) * warp_sum(weighted)).astype(out.dtype)
