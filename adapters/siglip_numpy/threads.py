"""All cores for NumPy: microbatches side by side, each on one BLAS thread.

NumPy's elementwise functions use one core, so with threads inside the matrix products only, much
of a training step runs on a single core. Whole microbatches on threads keep every core busy.
"""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from siglip_ref.backend import NumpyBackend
from siglip_ref.types import Map

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP = 2**30  # bytes


class ThreadedNumpyBackend(NumpyBackend):
    """NumPy on all cores of the host."""

    @contextmanager
    def parallel_map(self) -> Iterator[Map]:
        """A map over as many threads as there are cores, with one BLAS thread in each."""
        _keep_freed_memory()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool:
            yield pool.map


def _keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays instead of returning it to the system.

    By default every large temporary is mapped afresh and its pages are zeroed on first touch,
    which costs more than the arithmetic on it. Does nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)
