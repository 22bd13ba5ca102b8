"""The backward pass of a loss whose gradients are known: they times the loss' cotangent."""

from typing import NamedTuple

import jax.numpy as jnp

from siglip_ref.precision import cast_like
from siglip_ref.types import Array, Float


class Residuals(NamedTuple):
    """The gradients at dloss = 1, and an empty array of each argument's dtype."""

    grads: tuple[Float[Array, "..."], ...]
    likes: tuple[Float[Array, "0"], ...]


def residuals(grads: tuple[Array, ...], arguments: tuple[Array, ...]) -> Residuals:
    """What `pull_back` needs: gradients in at least float32, and the dtypes to end in."""
    return Residuals(tuple(grads), tuple(jnp.zeros(0, dtype=x.dtype) for x in arguments))


def pull_back(res: Residuals, dloss: Float[Array, ""]) -> tuple[Array, ...]:
    """The cotangents of the arguments, dloss grads.

    The product is formed before the dtype narrows: with dloss a loss scale, float16 keeps
    gradients that would be 0 by themselves.
    """
    return tuple(
        cast_like(cast_like(dloss, grad) * grad, like)
        for grad, like in zip(res.grads, res.likes, strict=True)
    )
