"""Losses that give their gradients at once, as functions that JAX can differentiate."""

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from siglip_ref.precision import cast_like
from siglip_ref.types import Array, Float

Arrays = tuple[Array, ...]


class Pass(Protocol):
    """Arguments to differentiate by, and arrays that are constants, to the loss and its gradients.

    The gradients are those at dloss = 1, in at least float32. Equal ones compute the same, and are
    compiled once.
    """

    def __call__(self, arguments: Arrays, constants: Arrays) -> tuple[Array, Arrays]:
        """The loss, and its gradient by each argument."""

    def __hash__(self) -> int:
        """A number that equal ones share."""


class Residuals(NamedTuple):
    """The gradients at dloss = 1, and an empty array of each argument's dtype."""

    grads: tuple[Float[Array, "..."], ...]
    likes: tuple[Float[Array, "0"], ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable(loss_pass: Pass, arguments: Arrays, constants: Arrays) -> Float[Array, ""]:
    """The loss, with `dloss` times the gradients for its cotangents; `constants` have none.

    The product is formed before the dtype narrows: with dloss a loss scale, float16 keeps
    gradients that would be 0 by themselves.
    """
    return loss_pass(arguments, constants)[0]


def _fwd(
    loss_pass: Pass, arguments: Arrays, constants: Arrays
) -> tuple[Float[Array, ""], Residuals]:
    loss, grads = loss_pass(arguments, constants)
    likes = tuple(jnp.zeros(0, dtype=x.dtype) for x in arguments)
    return loss, Residuals(tuple(grads), likes)


def _bwd(_: Pass, res: Residuals, dloss: Float[Array, ""]) -> tuple[Arrays, None]:
    cotangents = tuple(
        cast_like(cast_like(dloss, grad) * grad, like)
        for grad, like in zip(res.grads, res.likes, strict=True)
    )
    return cotangents, None


differentiable.defvjp(_fwd, _bwd)
