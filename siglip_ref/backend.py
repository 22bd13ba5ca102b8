"""What the shell asks of an array library, and the NumPy answer.

A backend moves arrays to its device and back, and may compile; it never changes what is
computed. Others are found by the entry point group `siglip_ref.backends`.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from siglip_ref.losses import TiledSigmoidLoss, tiled_sigmoid_loss
from siglip_ref.optim.adamw import AdamwLeaf
from siglip_ref.types import Array, Map

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h

LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""Where torchrun, Open MPI, MPICH and Slurm's srun number the processes of a machine, from 0."""

Fn = TypeVar("Fn", bound=Callable[..., Any])


class Backend(Protocol):
    """An array library on one device.

    sigmoid_loss
        The core's `tiled_sigmoid_loss`, or a faster form of it for this library.
    adamw_leaf
        The core's `optim.adamw.adamw_leaf` in the memory of the parameter and its moments; None
        where an update makes new arrays.
    update_block
        How many elements of a parameter another update works on at a time, to write them over;
        None where it makes new arrays.
    """

    name: str
    sigmoid_loss: TiledSigmoidLoss
    adamw_leaf: AdamwLeaf | None
    update_block: int | None

    def asarray(self, x: NDArray[Any]) -> Array:
        """The array on the backend's device."""

    def to_numpy(self, x: Array) -> NDArray[Any]:
        """The array in the memory of the host."""

    def dtype(self, precision: str) -> Any:
        """The library's dtype of this name: float64, float32, bfloat16 or float16.

        Raises ValueError if the library has none, or has it turned off.
        """

    def compile(self, fn: Fn, donate: tuple[int, ...] = ()) -> Fn:
        """A function that computes the same, perhaps faster.

        It may write over the arrays of the arguments numbered in `donate`.
        """

    def synchronize(self) -> None:
        """Return when everything that was asked for has been computed."""

    def peak_memory(self) -> int:
        """Most bytes held at any time so far."""

    def parallel_map(self) -> AbstractContextManager[Map]:
        """The map for microbatches, usable inside the context."""


class NumpyBackend:
    """NumPy on the host, one microbatch after the other."""

    name = "numpy"
    sigmoid_loss: TiledSigmoidLoss = staticmethod(tiled_sigmoid_loss)
    adamw_leaf: AdamwLeaf | None = None
    update_block: int | None = None

    def asarray(self, x: NDArray[Any]) -> NDArray[Any]:
        """`x` itself."""
        return x

    def to_numpy(self, x: Array) -> NDArray[Any]:
        """`x` itself, or the 0-d array of a NumPy scalar."""
        return np.asarray(x)

    def dtype(self, precision: str) -> np.dtype[Any]:
        """NumPy's dtype of this name; bfloat16 is none of its own."""
        if precision not in ("float64", "float32", "float16"):
            raise ValueError(f"precision must be one that NumPy has, got {precision!r}")
        return np.dtype(precision)

    def compile(self, fn: Fn, donate: tuple[int, ...] = ()) -> Fn:  # noqa: ARG002
        """`fn` itself: NumPy has no compiler."""
        return fn

    def synchronize(self) -> None:
        """Nothing: NumPy computes at once."""

    def peak_memory(self) -> int:
        """Largest resident size of the process in bytes."""
        import resource  # noqa: PLC0415  (Unix only)

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes on Linux

    def parallel_map(self) -> AbstractContextManager[Map]:
        """The built-in `map`."""
        return nullcontext(map)


def local_rank(environ: Mapping[str, str]) -> int | None:
    """The number of this process among those of its machine; None if no launcher gave it one.

    Backends choose their device by it. Of `LOCAL_RANK` the first that is set counts.

    Raises ValueError if that is no whole number from 0.
    """
    name = next((name for name in LOCAL_RANK if name in environ), None)
    if name is None:
        return None
    if not environ[name].isdecimal():
        raise ValueError(f"{name} must be a whole number from 0, got {environ[name]!r}")
    return int(environ[name])


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays instead of returning it to the system.

    By default every large temporary is mapped afresh and its pages are zeroed on first touch,
    which costs more than the arithmetic on it. Does nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
