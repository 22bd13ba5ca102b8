"""The towers compiled on their own, for calls that are not compiled as a whole.

Messages between processes cannot be compiled, so neither can a step that sends some; what it does
before and after them can. Inside of a compiled function nothing changes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from siglip_ref.encoders import image_bwd, image_fwd, text_bwd, text_fwd
from siglip_ref.encoders.encoder import not_before
from siglip_ref.fused import formula_of, register_form
from siglip_ref.types import Array

_STATIC: dict[Any, tuple[str, ...]] = {
    image_fwd: ("config", "execution"),
    image_bwd: ("config", "execution"),
    text_fwd: ("config", "execution"),
    text_bwd: ("config", "execution"),
}

FORMS: dict[Callable[..., Any], Any] = {
    operation: jax.jit(formula_of(operation), static_argnames=static)
    for operation, static in _STATIC.items()
}


def not_before_form(x: Array, dout: Array) -> tuple[Array, Array]:
    """`not_before` for XLA: x, which is NaN if the first element of dout is.

    On a CPU XLA drops its optimization barriers before it orders the work; this it cannot know.
    """
    first = dout.ravel()[0]
    return jnp.where(jnp.isnan(first), first, x).astype(x.dtype), dout


def register_forms() -> None:
    """Let the core use these forms for arrays of JAX that hold numbers."""
    for operation, form in FORMS.items():
        register_form(operation, type(jnp.zeros(())), form)
    register_form(not_before, jax.core.Tracer, not_before_form)
