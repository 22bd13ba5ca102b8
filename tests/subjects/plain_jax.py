"""SigLIP's losses and primitives as one writes them in JAX, with its own derivatives, compiled."""

import math
from functools import partial

from backends import library
from siglip_spec import Subject, autodiff

NORM_OF_ZERO = (
    "jnp.linalg.norm has no derivative at 0, so the gradient of a row of zeros is NaN: "
    "https://github.com/jax-ml/jax/issues/3058"
)
GELU = (
    "jax.nn.gelu computes 1 + tanh, which cancels at x = -5: "
    "https://docs.jax.dev/en/latest/_autosummary/jax.nn.gelu.html"
)
ROUNDED_MEAN = (
    "two passes subtract a mean that was rounded, which shows where it is 100 deviations, or where "
    "there is no deviation at all"
)
ALWAYS = {
    "accuracy.l2_normalize/n4-d5/zero-row[grad/dx]": NORM_OF_ZERO,
    "accuracy.gelu_tanh/n3-d7/left-tail": GELU,
    "accuracy.layer_norm/n4-d6/large-mean": ROUNDED_MEAN,
}
EXPECTED = {
    "float64": ALWAYS,
    "float32": ALWAYS | {"accuracy.layer_norm/n3-d7/constant-rows": ROUNDED_MEAN},
    "bfloat16": ALWAYS,
}


def plain_jax(dtype: str) -> Subject:
    """The subject; skips the test where JAX is missing."""
    jax = library("jax")
    jnp = jax.numpy
    subject = Subject(
        "plain JAX, compiled", dtype=dtype, vjp=autodiff.jax, expected_failures=EXPECTED[dtype]
    )

    def provides(operation, *settings):
        def register(function):
            subject.provides(operation)(partial(jax.jit, static_argnames=settings)(function))
            return function

        return register

    @provides("scaled_cosine")
    def scaled_cosine(zimg, ztxt, t_prime):
        return jnp.exp(t_prime) * zimg @ ztxt.T

    @provides("sigmoid_loss")
    def sigmoid_loss(zimg, ztxt, t_prime, b):
        logits = jnp.exp(t_prime) * zimg @ ztxt.T + b
        labels = 2 * jnp.eye(len(zimg), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(labels * logits).sum() / len(zimg)

    @provides("pairwise_sigmoid_loss")
    def pairwise_sigmoid_loss(zimg, ztxt, t_prime, b, labels, weights):
        logits = jnp.exp(t_prime) * zimg @ ztxt.T + b
        positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        loglik = (1 + labels) / 2 * positive + (1 - labels) / 2 * negative
        return -(weights * loglik).sum() / len(zimg)

    @provides("softmax_loss")
    def softmax_loss(zimg, ztxt, t_prime):
        logits = jnp.exp(t_prime) * zimg @ ztxt.T
        images, texts = (jax.nn.log_softmax(logits, axis=axis) for axis in (1, 0))
        return -(jnp.diag(images).mean() + jnp.diag(texts).mean()) / 2

    @provides("initial_scalars")
    def initial_scalars():
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        return jnp.asarray(math.log(10), wide), jnp.asarray(-10.0, wide)

    @provides("dense")
    def dense(x, kernel, bias):
        return x @ kernel + bias

    @provides("layer_norm", "eps")
    def layer_norm(x, scale, bias, eps):
        mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + eps) * scale + bias

    @provides("gelu_tanh")
    def gelu_tanh(x):
        return jax.nn.gelu(x, approximate=True)

    @provides("softmax")
    def softmax(x):
        return jax.nn.softmax(x)

    @provides("softplus")
    def softplus(x):
        return jax.nn.softplus(x)

    @provides("log_sigmoid")
    def log_sigmoid(x):
        return jax.nn.log_sigmoid(x)

    @provides("l2_normalize", "eps")
    def l2_normalize(x, eps):
        return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + eps)

    @provides("patch_embed")
    def patch_embed(images, kernel, bias):
        size = math.isqrt(kernel.shape[0] // 3)
        patches = jax.lax.conv_general_dilated(
            images,
            kernel.reshape(size, size, 3, -1),
            (size, size),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return patches.reshape(len(images), -1, kernel.shape[1]) + bias

    @provides("embed")
    def embed(tokens, embedding):
        return embedding[tokens]

    @provides("dot_product_attention")
    def dot_product_attention(query, key, value):
        scores = query @ jnp.swapaxes(key, -1, -2) / math.sqrt(query.shape[-1])
        return jax.nn.softmax(scores) @ value

    @provides("multi_head_attention", "num_heads")
    def multi_head_attention(x, y, params, num_heads):
        def heads(source, name):
            split = dense(source, **params[name]).reshape(*source.shape[:2], num_heads, -1)
            return jnp.swapaxes(split, 1, 2)

        found = dot_product_attention(heads(x, "query"), heads(y, "key"), heads(y, "value"))
        return dense(jnp.swapaxes(found, 1, 2).reshape(x.shape), **params["out"])

    @provides("normalize_pixels")
    def normalize_pixels(pixels):
        return pixels.astype(dtype) / 127.5 - 1

    return subject
