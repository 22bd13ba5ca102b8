"""CuPy as a backend of the core."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import cupy
import cupyx
import numpy as np
from numpy.typing import NDArray

from siglip_cupy.device import require_device, use_own_device
from siglip_cupy.forms import register_forms
from siglip_cupy.gemm import cublas
from siglip_cupy.tile_loop import tiled_sigmoid_loss
from siglip_ref.losses import TiledSigmoidLoss
from siglip_ref.optim.adamw import AdamwLeaf
from siglip_ref.types import Array, Map

Fn = TypeVar("Fn", bound=Callable[..., Any])


class CupyBackend:
    """CuPy on the CUDA device of this process.

    That is the one with its local rank where a launcher started it, and else the current one, so
    that the processes of a machine share out its devices whatever carries their messages. Making a
    backend lets this thread use it, and registers the fused forms of the core's operations for CuPy
    arrays.

    Raises RuntimeError if there is no CUDA device, or if cuBLAS cannot be loaded.
    """

    name = "cupy"
    sigmoid_loss: TiledSigmoidLoss = staticmethod(tiled_sigmoid_loss)
    adamw_leaf: AdamwLeaf | None = None
    update_block: int | None = 2**24

    def __init__(self) -> None:
        require_device()
        use_own_device()
        _require_cublas()
        register_forms()

    def asarray(self, x: NDArray[Any]) -> Array:
        """The array on the device; CuPy sends it from pinned memory, without waiting for it."""
        return cupy.asarray(x)

    def to_numpy(self, x: Array) -> NDArray[Any]:
        """The array in pinned memory of the host, once it is there."""
        sent = cupy.ascontiguousarray(x)  # which has an axis where a 0-d array has none
        host: NDArray[Any] = cupyx.empty_pinned(sent.shape, dtype=x.dtype)
        sent.get(out=host)
        return host.reshape(x.shape)

    def dtype(self, precision: str) -> np.dtype[Any]:
        """NumPy's dtype of this name; bfloat16 is that of ml_dtypes."""
        try:
            return np.dtype(precision)
        except TypeError as error:
            raise ValueError(f"precision must be one that CuPy has, got {precision!r}") from error

    def compile(self, fn: Fn, donate: tuple[int, ...] = ()) -> Fn:  # noqa: ARG002
        """`fn` itself: CuPy has no compiler of functions, and the kernels are compiled already."""
        return fn

    def synchronize(self) -> None:
        """Wait for the current device."""
        cupy.cuda.Device().synchronize()

    def peak_memory(self) -> int:
        """Most bytes that CuPy's memory pool has taken from the device; it gives none back."""
        return int(cupy.get_default_memory_pool().total_bytes())

    def parallel_map(self) -> AbstractContextManager[Map]:
        """The built-in `map`: the device is kept busy by one thread."""
        return nullcontext(map)


def _require_cublas() -> None:
    try:
        cublas()
    except ImportError as error:
        raise RuntimeError(
            f"CuPy needs cuBLAS, which cannot be loaded ({error}); install the CUDA "
            "libraries: pip install 'siglip-ref[cupy]'"
        ) from error
