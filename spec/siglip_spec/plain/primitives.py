"""The parts that losses and towers are made of, in plain NumPy."""

import numpy as np

from siglip_ref.types import Array, Tree


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return np.logaddexp(0, x)


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x)))."""
    return -softplus(-x)


def softmax(x: Array) -> Array:
    """exp(xᵢ) / Σⱼ exp(xⱼ) along the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def gelu_tanh(x: Array) -> Array:
    """x/2 (1 + tanh(u)) = x sigmoid(2 u) with u = sqrt(2/π) (x + 0.044715 x³)."""
    return x * np.exp(log_sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def l2_normalize(x: Array, eps: float) -> Array:
    """x / (‖x‖ + eps) along the last axis."""
    return x / (np.sqrt(np.sum(x * x, axis=-1, keepdims=True)) + eps)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - μ) / sqrt(σ² + eps) scale + bias along the last axis, σ² divided by d."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    centred = centred - np.mean(centred, axis=-1, keepdims=True)  # what rounding left of μ
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * scale + bias


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """x kernel + bias."""
    return x @ kernel + bias


def scaled_cosine(zimg: Array, ztxt: Array, t_prime: Array) -> Array:
    """exp(t') zimg ztxtᵀ."""
    return np.exp(t_prime) * (zimg @ ztxt.T)


def normalize_pixels(pixels: Array) -> Array:
    """Bytes to [-1, 1]."""
    return pixels / 127.5 - 1


def embed(tokens: Array, embedding: Array) -> Array:
    """The row of each token."""
    return embedding[tokens]


def patches(images: Array, p: int) -> Array:
    """(n, height, width, c) to (n, l, p·p·c): row-major patches of (row, column, channel)."""
    n, height, width, c = images.shape
    rows, columns = height // p, width // p
    cut = images[:, : rows * p, : columns * p].reshape(n, rows, p, columns, p, c)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, p * p * c)


def patch_embed(images: Array, kernel: Array, bias: Array) -> Array:
    """A dense layer on each patch of p x p pixels; p follows from the kernel."""
    p = int(np.sqrt(kernel.shape[0] // images.shape[-1]))
    return dense(patches(images, p), kernel, bias)


def dot_product_attention(query: Array, key: Array, value: Array) -> Array:
    """softmax(query keyᵀ / sqrt(k)) value for each image and head, (n, h, l, k)."""
    scores = np.einsum("nhlk,nhmk->nhlm", query, key) / np.sqrt(query.shape[-1])
    return np.einsum("nhlm,nhmk->nhlk", softmax(scores), value)


def split_heads(x: Array, num_heads: int) -> Array:
    """(n, l, d) to (n, h, l, k): head i has the i-th k of the d columns."""
    n, length, d = x.shape
    return x.reshape(n, length, num_heads, d // num_heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """(n, h, l, k) to (n, l, d)."""
    n, h, length, k = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, length, h * k)


def multi_head_attention(x: Array, y: Array, params: Tree, num_heads: int) -> Array:
    """Queries from x, keys and values from y, no mask; four dense layers with bias."""
    query = split_heads(dense(x, **params["query"]), num_heads)
    key = split_heads(dense(y, **params["key"]), num_heads)
    value = split_heads(dense(y, **params["value"]), num_heads)
    return dense(merge_heads(dot_product_attention(query, key, value)), **params["out"])
