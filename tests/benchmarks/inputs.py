"""The embeddings on which the losses are timed."""

import math
from collections.abc import Iterator

import numpy as np

D = 768
T_PRIME, B = np.asarray(math.log(10), np.float32), np.asarray(-10, np.float32)


def embeddings(n: int) -> Iterator[np.ndarray]:
    """Images, then texts: rows of norm 1 in float32, of which nothing is kept here."""
    rng = np.random.default_rng(0)
    for _ in range(2):
        yield _rows(rng, n)


def _rows(rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.standard_normal((n, D), dtype=np.float32)
    # Without a temporary, the memory of which would hide what is measured after it.
    z /= np.sqrt(np.einsum("nd,nd->n", z, z))[:, None]
    return z
