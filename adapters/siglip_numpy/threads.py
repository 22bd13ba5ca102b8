"""All cores for NumPy: microbatches side by side, each on one BLAS thread.

NumPy's elementwise functions use one core, so with threads inside the matrix products only, much
of a training step runs on a single core. Microbatches on threads keep every core busy.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from siglip_numpy.adamw import adamw_leaf
from siglip_numpy.forms import HostArray, register_forms
from siglip_numpy.tile_loop import tiled_sigmoid_loss
from siglip_ref.backend import NumpyBackend, keep_freed_memory
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.optim.adamw import AdamwLeaf
from siglip_ref.types import Array, Map


class ThreadedNumpyBackend(NumpyBackend):
    """NumPy on all cores of the host, or on OMP_NUM_THREADS of them."""

    adamw_leaf: AdamwLeaf | None = staticmethod(adamw_leaf)
    update_block: int | None = 2**18
    """Large enough that handing out the blocks costs little, small enough to stay in a cache."""

    def __init__(self) -> None:
        self.sigmoid_loss = self._sigmoid_loss
        register_forms()

    def asarray(self, x: NDArray[Any]) -> NDArray[Any]:
        """`x` as a `HostArray` in the same memory, or in new memory if `x` cannot be written to."""
        return (x if x.flags.writeable else x.copy()).view(HostArray)

    @contextmanager
    def parallel_map(self) -> Iterator[Map]:
        """A map over as many threads as there are cores, with one BLAS thread in each."""
        keep_freed_memory()
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads()) as pool:
            yield pool.map

    def _sigmoid_loss(
        self, zimg: Array, ztxt: Array, t_prime: Array, b: Array, **options: Any
    ) -> tuple[Array, SigmoidLossCotangents]:
        """The core's `tiled_sigmoid_loss` in place, its tiles on all cores."""
        with self.parallel_map() as parallel_map:
            return tiled_sigmoid_loss(zimg, ztxt, t_prime, b, **options, parallel_map=parallel_map)


def num_threads() -> int:
    """The cores that this process may use, at most OMP_NUM_THREADS if that is set."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdigit() and int(limit) else cores
