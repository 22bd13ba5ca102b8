"""Torch as the array library of the shell."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siglip_ref.backend import NumpyBackend, keep_freed_memory
from siglip_ref.losses import TiledSigmoidLoss
from siglip_ref.optim.adamw import AdamwLeaf
from siglip_ref.types import Map
from siglip_torch.adamw import adamw_leaf
from siglip_torch.device import use_own_device
from siglip_torch.forms import register_forms
from siglip_torch.tile_loop import tiled_sigmoid_loss

Fn = TypeVar("Fn", bound=Callable[..., Any])


class TorchBackend:
    """Torch on the CUDA device of this process, or on the host if there is none.

    That is the one with its local rank where a launcher started it, and else the current one, so
    that the processes of a machine share out its devices whatever carries their messages. Making a
    backend lets this thread use it.

    The arrays never ask for gradients: the core forms them itself. Making one also registers
    Torch's kernels for tensors on the host.
    """

    name = "torch"
    sigmoid_loss: TiledSigmoidLoss = staticmethod(tiled_sigmoid_loss)

    def __init__(self) -> None:
        register_forms()
        use_own_device()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # On CUDA the update is compiled as a whole.
        on_host = self.device.type == "cpu"
        self.adamw_leaf: AdamwLeaf | None = adamw_leaf if on_host else None
        self.update_block = 2**18 if on_host else None

    def asarray(self, x: NDArray[Any]) -> Tensor:
        """`x` on the device, on the host without a copy where Torch can share its memory."""
        return from_numpy(x).to(self.device)

    def to_numpy(self, x: Tensor) -> NDArray[Any]:
        """`x` in the memory of the host; bfloat16, which NumPy has not, as float32."""
        host = x.detach().cpu()
        return (host.float() if host.dtype == torch.bfloat16 else host).numpy()

    def dtype(self, precision: str) -> torch.dtype:
        """Torch's dtype of this name."""
        dtype = getattr(torch, precision, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"precision must be one that Torch has, got {precision!r}")
        return dtype

    def compile(self, fn: Fn, donate: tuple[int, ...] = ()) -> Fn:  # noqa: ARG002
        """`torch.compile` on CUDA; on the host `fn` itself.

        On one thread of the host `siglip_ref.loss_and_grads`, with S/16 towers of two blocks and
        batches of 8, takes 73 s to compile and then 0.7 s for 0.8 s.
        """
        return fn if self.device.type == "cpu" else cast(Fn, torch.compile(fn))

    def synchronize(self) -> None:
        """Wait for the device; on the host Torch computes at once."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Most bytes allocated on the device, or the largest resident size of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return NumpyBackend().peak_memory()

    def parallel_map(self) -> AbstractContextManager[Map]:
        """The built-in `map`: Torch runs each operation on all cores.

        From then on the C library keeps freed memory, which a training step asks for again.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        return nullcontext(map)


def from_numpy(x: NDArray[Any]) -> Tensor:
    """`x` as a tensor in the memory of the host, and of `x` itself where Torch can share it."""
    x = np.asarray(x)
    if x.dtype.name == "bfloat16":  # of ml_dtypes, which Torch does not know
        return torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)
    shared = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x if shared else x.copy())
