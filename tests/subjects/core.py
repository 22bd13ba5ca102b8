"""Our own core as a subject of the kit: the kit's reference operations, on any array library.

Scalars (t', b, and the cotangent of a loss) are held in at least float32, as NUM-7 asks for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends import library
from siglip_ref.precision import cast_like
from siglip_ref.tree import tree_map
from siglip_spec.operations import OPERATIONS, Answer
from siglip_spec.score import PRECISIONS
from siglip_spec.subject import NotClaimedError, RefusedError

NARROW = ("float16", "bfloat16")
NOT_CLAIMED = {"normalize_pixels": "the core starts at floating-point images"}


@dataclass(frozen=True)
class CoreSubject:
    """`siglip_ref` on arrays of one library and dtype.

    module, namespace
        The library to import, and the array namespace in it; JAX compiles every case.
    """

    label: str
    module: str
    namespace: str
    dtype: str
    expected_failures: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"siglip-ref on {self.label}"

    def claims(self, operation: str) -> bool:
        return operation not in NOT_CLAIMED

    def claims_gradient(self, operation: str) -> bool:
        return self.claims(operation)

    def answer(self, case: Any) -> Answer:
        if not self.claims(case.operation):
            raise NotClaimedError(NOT_CLAIMED[case.operation])
        library(self.module)
        try:
            found = self._compiled(case)(
                tree_map(self._native, case.inputs), tree_map(self._native, case.cotangents)
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from error
        return Answer(*(tree_map(self._plain, group) for group in found))

    def _compiled(self, case: Any) -> Callable[[Any, Any], Answer]:
        reference = OPERATIONS[case.operation].reference

        def run(inputs: Any, cotangents: Any) -> Answer:
            if cotangents and self.dtype in NARROW:
                # As of any function: in the dtype of the output, which may be the wider one.
                out = reference(inputs, case.attrs, {}).out
                cotangents = {name: cast_like(x, out[name]) for name, x in cotangents.items()}
            return reference(inputs, case.attrs, cotangents)

        return library("jax").jit(run) if self.module == "jax" else run

    def _native(self, array: np.ndarray) -> Any:
        xp = importlib.import_module(self.namespace)
        if not np.issubdtype(array.dtype, np.floating):
            return xp.asarray(np.array(array))
        dtype = "float32" if self.dtype in NARROW and array.ndim == 0 else self.dtype
        stored = xp.asarray(array.astype(PRECISIONS[dtype].storage))
        return stored if dtype != "bfloat16" else self._to_bfloat16(stored)

    def _to_bfloat16(self, array: Any) -> Any:
        xp = importlib.import_module(self.namespace)
        return array.to(xp.bfloat16) if self.module == "torch" else array.astype(xp.bfloat16)

    def _plain(self, array: Any) -> np.ndarray:
        if self.module == "torch" and not isinstance(array, np.ndarray):
            array = array.double()
        return np.asarray(array, dtype=np.float64)


def _on(
    label: str,
    module: str,
    namespace: str,
    *dtypes: str,
    expected_failures: dict[str, dict[str, str]] | None = None,
) -> list[CoreSubject]:
    expected = expected_failures or {}
    return [
        CoreSubject(label, module, namespace, dtype, expected.get(dtype, {})) for dtype in dtypes
    ]


FUSED = {
    "accuracy.softmax_loss/n7-d5/hard": (
        "XLA fuses the product of t and the cosine with the subtraction of the maximum, rounding "
        "once, so what is 0 becomes the rounding error of a logit of 3000"
    )
}
CORES = (
    *_on("NumPy", "numpy", "numpy", "float64", "float32", "float16"),
    *_on("array-api-strict", "array_api_strict", "array_api_strict", "float64"),
    *_on("PyTorch", "torch", "torch", "float64", "float32", "bfloat16", "float16"),
    *_on(
        "JAX, compiled",
        "jax",
        "jax.numpy",
        "float64",
        "float32",
        "bfloat16",
        expected_failures={"float64": FUSED, "float32": FUSED},
    ),
)
