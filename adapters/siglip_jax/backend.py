"""JAX as the array library of the shell."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from siglip_jax.arguments import jax_array, x64_is_on
from siglip_jax.forms import register_forms
from siglip_jax.sigmoid import tiled_sigmoid_loss
from siglip_ref.backend import NumpyBackend
from siglip_ref.losses import TiledSigmoidLoss
from siglip_ref.optim.adamw import AdamwLeaf
from siglip_ref.types import Array, Map

Fn = TypeVar("Fn", bound=Callable[..., Any])


class JaxBackend:
    """JAX on its first device, every step compiled.

    Making one also registers compiled forms of the towers, for steps on several devices: their
    messages cannot be compiled.

    float64 is there only if `jax_enable_x64` is on: without it, float64 arrays are refused.
    """

    name = "jax"
    sigmoid_loss: TiledSigmoidLoss = staticmethod(tiled_sigmoid_loss)
    adamw_leaf: AdamwLeaf | None = None
    update_block: int | None = None

    def __init__(self) -> None:
        register_forms()

    def asarray(self, x: NDArray[Any]) -> Array:
        """The array on the device.

        Raises TypeError for float64 where JAX would make float32 of it.
        """
        return jax_array("x", x)

    def to_numpy(self, x: Array) -> NDArray[Any]:
        """The array in the memory of the host; bfloat16, which NumPy has not, as float32."""
        host = np.asarray(x)
        return host.astype(np.float32) if host.dtype.name == "bfloat16" else host

    def dtype(self, precision: str) -> np.dtype[Any]:
        """JAX's dtype of this name; float64 only if `jax_enable_x64` is on."""
        if precision == "float64" and not x64_is_on():
            raise ValueError(
                "precision must be one that JAX has turned on, got 'float64': set JAX_ENABLE_X64=1"
            )
        try:
            return jnp.dtype(precision)
        except TypeError as error:
            raise ValueError(f"precision must be one that JAX has, got {precision!r}") from error

    def compile(self, fn: Fn, donate: tuple[int, ...] = ()) -> Fn:
        """`jax.jit`: compiled at the first call, and again for other shapes and dtypes."""
        return cast(Fn, jax.jit(fn, donate_argnums=donate))

    def synchronize(self) -> None:
        """Wait for all arrays: on a CPU what was asked for later may be there first."""
        jax.block_until_ready(jax.live_arrays())
        jax.effects_barrier()

    def peak_memory(self) -> int:
        """Most bytes in use on the device, or the largest resident size of the process."""
        statistics = jax.local_devices()[0].memory_stats()
        if statistics and "peak_bytes_in_use" in statistics:
            return int(statistics["peak_bytes_in_use"])
        return NumpyBackend().peak_memory()

    def parallel_map(self) -> AbstractContextManager[Map]:
        """The built-in `map`: what is compiled runs on all cores."""
        return nullcontext(map)
