"""A backend's own form of the tiled sigmoid loss, as a subject of the kit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.losses import TiledSigmoidLoss, diagonal, from_matrix
from siglip_ref.tree import tree_map
from siglip_spec.operations import Answer
from siglip_spec.score import PRECISIONS
from siglip_spec.subject import NotClaimedError, RefusedError

OPERATIONS = ("sigmoid_loss", "pairwise_sigmoid_loss", "tiled_sigmoid_loss")


@dataclass(frozen=True)
class TileLoop:
    """A loss that gives its gradients at once, on the arrays that `asarray` makes.

    In 16 bits the embeddings are narrow, and t' and b float32.
    """

    name: str
    loss: TiledSigmoidLoss
    dtype: str
    asarray: Callable[[np.ndarray, str], Any]
    to_numpy: Callable[[Any], np.ndarray]

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {}

    def claims(self, operation: str) -> bool:
        return operation in OPERATIONS

    def claims_gradient(self, operation: str) -> bool:
        return self.claims(operation)

    def answer(self, case: Any) -> Answer:
        if not self.claims(case.operation):
            raise NotClaimedError("a loss on embeddings only")
        given = {name: self._native(x) for name, x in case.inputs.items()}
        names = ("zimg", "ztxt", "t_prime", "b")
        # Which pairs there are the caller says, not the loss, so the caller refuses.
        sizes = tuple(given[name].shape[0] for name in ("zimg", "ztxt"))
        wanted = tuple(given["labels"].shape) if "labels" in given else (sizes[0], sizes[0])
        if sizes != wanted and case.operation != "tiled_sigmoid_loss":
            raise RefusedError(f"ValueError: pairs must be {wanted}, got {sizes}")
        labelled = "labels" in given
        pairs = from_matrix(given["labels"], given["weights"]) if labelled else diagonal
        try:
            loss, grads = self.loss(
                *(given[name] for name in names), tile=case.attrs.get("tile", 3), pairs=pairs
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from error
        dloss = float(case.cotangents["loss"]) if case.cotangents else 1.0
        # The cotangent multiplies outside, in float64, where it adds nothing to the error.
        found = {name: dloss * self._plain(grad) for name, grad in grads._asdict().items()}
        return Answer({"loss": self._plain(loss)}, found if case.cotangents else {}, {})

    def _native(self, array: np.ndarray) -> Any:
        if not np.issubdtype(array.dtype, np.floating):
            return self.asarray(array, str(array.dtype))
        narrow = self.dtype in ("float16", "bfloat16")
        dtype = "float32" if narrow and array.ndim == 0 else self.dtype
        return self.asarray(array.astype(PRECISIONS[dtype].storage), dtype)

    def _plain(self, array: Any) -> np.ndarray:
        return np.asarray(tree_map(self.to_numpy, array), dtype=np.float64)
