"""Inputs of cases: reproducible, and exact in float64, float32, bfloat16 and float16 alike.

A number of at most 8 significant bits and of a magnitude between 2^-14 and 2^15 is exact in all of
them, so no subject starts with a rounding error and one vector serves every dtype.
"""

import math

import numpy as np

from siglip_ref.tree import tree_map
from siglip_ref.types import Tree

_BITS = 8
_SMALLEST = 2.0**-14

INITIAL_T_PRIME = 2.296875
"""The number nearest to log 10 that has 8 bits: t = 9.943."""


def on_grid(x: np.ndarray | float) -> np.ndarray:
    """`x` rounded to 8 significant bits; 0 below the smallest normal number of float16."""
    mantissa, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    rounded = np.ldexp(np.round(mantissa * 2**_BITS), exponent - _BITS)
    return np.asarray(np.where(np.abs(rounded) < _SMALLEST, 0.0, rounded))


def is_on_grid(x: np.ndarray) -> bool:
    """Whether all of `x` is exact in every dtype."""
    return bool(np.all(on_grid(x) == x) and np.all(np.abs(x) <= 2.0**15))


class Values:
    """Random inputs of the case of this id, the same for ever."""

    def __init__(self, case_id: str) -> None:
        self._rng = np.random.default_rng(list(case_id.encode()))

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        """Normal numbers with this deviation and mean."""
        return on_grid(mean + scale * self._rng.standard_normal(shape))

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Numbers spread evenly over an interval."""
        return on_grid(self._rng.uniform(low, high, shape))

    def unit_rows(self, n: int, d: int) -> np.ndarray:
        """Directions: rows of norm 1 to within the grid."""
        z = self._rng.standard_normal((n, d))
        return on_grid(z / np.linalg.norm(z, axis=1, keepdims=True))

    def integers(self, high: int, *shape: int) -> np.ndarray:
        """Integers from 0 up to, and without, `high`."""
        return self._rng.integers(0, high, shape)

    def choice(self, values: tuple[float, ...], *shape: int) -> np.ndarray:
        """One of the values for each element."""
        return np.asarray(self._rng.choice(values, shape), dtype=np.float64)

    def dense(self, d_in: int, d_out: int) -> Tree:
        """A kernel that keeps the size of what it maps, and a bias that is no zero."""
        return {
            "kernel": self.normal(d_in, d_out, scale=1 / math.sqrt(d_in)),
            "bias": self.normal(d_out, scale=0.25),
        }

    def norm(self, d: int) -> Tree:
        """Scale and bias of a layer norm, away from 1 and 0."""
        return {
            "scale": self.normal(d, scale=0.25, mean=1.0),
            "bias": self.normal(d, scale=0.25),
        }

    def attention(self, d: int) -> Tree:
        """The four maps of an attention layer."""
        return {name: self.dense(d, d) for name in ("query", "key", "value", "out")}

    def mlp(self, d: int, f: int) -> Tree:
        """The two maps of a perceptron."""
        return {"dense_0": self.dense(d, f), "dense_1": self.dense(f, d)}

    def block(self, d: int, f: int) -> Tree:
        """A transformer block."""
        return {
            "ln_0": self.norm(d),
            "attn": self.attention(d),
            "ln_1": self.norm(d),
            "mlp": self.mlp(d, f),
        }

    def map_head(self, d: int, f: int) -> Tree:
        """The pooling head of the image tower."""
        return {
            "probe": self.normal(1, d),
            "attn": self.attention(d),
            "ln": self.norm(d),
            "mlp": self.mlp(d, f),
        }

    def image_tower(self, patch: int, patches: int, d: int, f: int, depth: int) -> Tree:
        """The parameters under `img`."""
        return {
            "patch_embed": self.dense(patch * patch * 3, d),
            "pos_embedding": self.normal(patches, d, scale=0.5),
            "block": {f"{index:02d}": self.block(d, f) for index in range(depth)},
            "encoder_norm": self.norm(d),
            "map_head": self.map_head(d, f),
        }

    def text_tower(self, v: int, length: int, d: int, f: int, depth: int, out: int | None) -> Tree:
        """The parameters under `txt`; without a head if `out` is None."""
        params = {
            "embed": {"embedding": self.normal(v, d)},
            "pos_embedding": self.normal(length, d, scale=0.5),
            "block": {f"{index:02d}": self.block(d, f) for index in range(depth)},
            "encoder_norm": self.norm(d),
        }
        return params if out is None else {**params, "head": self.dense(d, out)}

    def like(self, tree: Tree, scale: float = 1.0) -> Tree:
        """Normal numbers in the shapes of a tree."""
        return tree_map(lambda leaf: self.normal(*leaf.shape, scale=scale), tree)
