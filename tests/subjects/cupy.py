"""The core on CuPy arrays as a subject of the kit, with the adapter's forms and its tile loop.

The arrays are those of whatever `import cupy` gives: on a machine with a GPU the device's, in the
other tests those of the stand-in.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.losses import diagonal, from_matrix
from siglip_ref.precision import cast_like
from siglip_ref.tree import tree_map
from siglip_spec.operations import Answer
from siglip_spec.score import PRECISIONS
from subjects.core import NARROW, CoreSubject

BIASED = ("zimg", "ztxt", "t_prime", "b")
TILE = 4
"""Small enough that every case of the kit has several tiles."""


@dataclass(frozen=True)
class CupySubject(CoreSubject):
    """`siglip_ref` on CuPy, its sigmoid losses by `siglip_cupy.tiled_sigmoid_loss`.

    backend
        A `CupyBackend`.
    """

    backend: Any = None

    def _compiled(self, case: Any) -> Any:
        if case.operation in ("sigmoid_loss", "pairwise_sigmoid_loss", "tiled_sigmoid_loss"):
            return lambda inputs, cotangents: self._tile_loop(case, inputs, cotangents)
        return super()._compiled(case)

    def _tile_loop(self, case: Any, inputs: Any, cotangents: Any) -> Answer:
        pairs = diagonal
        zimg, ztxt = inputs["zimg"], inputs["ztxt"]
        if case.operation == "pairwise_sigmoid_loss":
            labels = inputs["labels"]
            wanted = (zimg.shape[0], ztxt.shape[0])
            if labels.shape != wanted:
                raise ValueError(f"labels must have the shape {wanted}, got {labels.shape}")
            pairs = from_matrix(labels, inputs["weights"])
        elif zimg.shape[0] != ztxt.shape[0]:
            raise ValueError("zimg and ztxt must hold one row for each pair")
        loss, grads = self.backend.sigmoid_loss(
            *(inputs[name] for name in BIASED), tile=case.attrs.get("tile", TILE), pairs=pairs
        )
        if not cotangents:
            return Answer({"loss": loss}, {}, {})
        dloss = cast_like(cotangents["loss"], loss)
        scaled = {name: cast_like(dloss * x, x) for name, x in grads._asdict().items()}
        return Answer({"loss": loss}, scaled, {})

    def _native(self, array: np.ndarray) -> Any:
        if not np.issubdtype(array.dtype, np.floating):
            return self.backend.asarray(np.array(array))
        dtype = "float32" if self.dtype in NARROW and array.ndim == 0 else self.dtype
        stored = array.astype(PRECISIONS[dtype].storage)
        if dtype == "bfloat16":
            stored = stored.astype(importlib.import_module("ml_dtypes").bfloat16)
        return self.backend.asarray(stored)

    def _plain(self, array: Any) -> np.ndarray:
        host = array if isinstance(array, np.ndarray) else self.backend.to_numpy(array)
        return host.astype(np.float64)


def cupy_subjects(backend: Any) -> list[CupySubject]:
    """One for each dtype."""
    return [
        CupySubject("CuPy", "cupy", "cupy", dtype, backend=backend)
        for dtype in ("float64", "float32", "bfloat16", "float16")
    ]


def to_device(backend: Any, tree: Any) -> Any:
    """A tree of NumPy arrays on the device."""
    return tree_map(backend.asarray, tree)


def to_host(backend: Any, tree: Any) -> Any:
    """And back."""
    return tree_map(backend.to_numpy, tree)
