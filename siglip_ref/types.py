"""The types of the core: arrays of any array-API namespace, and trees of them.

Shapes stand in annotations as `Float[Array, "n d"]`; they are documentation for the reader and
are checked at run time in the tests. The axis names are those of `spec/01-notation.md`:
n pairs, m texts, l tokens, h heads, d width, k head size, f mlp width, p patch, v vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Bool, Float, Int

Array = Any
"""An array of NumPy, array-api-strict, Torch, JAX, CuPy or another array-API namespace."""

Count = int | Int[Array, ""]
"""How many steps were done: a number, or a 0-d integer array where a step is compiled."""

Map = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
"""How independent parts are mapped over: `map`, or that of a pool; results come in order."""

Tree = Any
"""A nested dict with string keys and arrays at the leaves, for example the parameters."""

__all__ = ["Array", "Bool", "Count", "Float", "Int", "Map", "Tree"]
