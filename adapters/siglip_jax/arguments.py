"""What the faces do with their arguments before they compute."""

from functools import reduce
from operator import or_

import jax
import jax.numpy as jnp
import numpy as np

from siglip_ref.losses.blocks import check_embeddings, check_scalar
from siglip_ref.losses.pairs import Pairs, check_counts
from siglip_ref.types import Array


def jax_array(name: str, x: Array) -> Array:
    """The array in JAX, with every digit that it has.

    Raises TypeError for float64 where JAX would make float32 of it, since jax_enable_x64 is off.
    """
    if getattr(x, "dtype", None) == np.float64 and not x64_is_on():
        raise TypeError(
            f"{name} has the dtype float64, which JAX would round to float32: "
            "set jax.config.update('jax_enable_x64', True), or convert it to float32"
        )
    return jnp.asarray(x)


def x64_is_on() -> bool:
    """Whether JAX has 64-bit numbers, which it does not by default."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


def checked(pairs: Pairs, zimg: Array, ztxt: Array, **scalars: Array) -> tuple[Array, ...]:
    """The arguments of a loss as JAX arrays.

    Raises ValueError if they do not fit each other, as the core's losses do, and if the numbers
    of images and texts differ although image i belongs to text i.
    """
    check_embeddings(zimg, ztxt)
    for name, value in scalars.items():
        check_scalar(name, value)
    check_counts(pairs, zimg, ztxt)
    named = {"zimg": zimg, "ztxt": ztxt, **scalars}
    return tuple(jax_array(name, x) for name, x in named.items())


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, each varying over every mesh axis of `shard_map` that one of them does.

    A loop asks that what it carries keeps its type, and a custom derivative that a cotangent has
    the type of its argument. So t', the same on all devices, is to enter as one that differs; the
    sum over the devices of its cotangents is then made by JAX.
    """
    # A condition that is never true, and varies as all of the arrays do.
    never = reduce(or_, (jnp.ravel(x)[:1].sum() != 0 for x in arrays)) & jnp.asarray(False)
    return tuple(jnp.where(never, jnp.zeros_like(x), x) for x in arrays)
