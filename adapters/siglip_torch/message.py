"""Arrays as messages, each with a header in words."""

from collections.abc import Sequence

import numpy as np
import torch
from array_api_compat import is_numpy_array
from torch import Tensor

from siglip_ref.faults import place
from siglip_ref.types import Array

HEADER = 512
"""Bytes of a header."""


def to_tensor(array: Array) -> Tensor:
    """A tensor for an array of Torch or NumPy, in one piece.

    Raises TypeError on an array of another library, since it would not come home to it.
    """
    if isinstance(array, Tensor):
        return array.detach().contiguous()
    if not is_numpy_array(array):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(
            f"the ring over torch.distributed sends arrays of Torch and of NumPy, got a {kind}; "
            "processes started by mpiexec send arrays of any library (siglip_mpi)"
        )
    array = np.asarray(array, order="C")
    array = array if array.flags.writeable else array.copy()  # Torch warns of such
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_home(tensor: Tensor, like: Array) -> Array:
    """A tensor in the library of another array."""
    if isinstance(like, Tensor):
        return tensor
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(like.dtype)
    return tensor.numpy()


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, in one pass and without a temporary."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def header_of(
    tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], step: int, hop: int
) -> str:
    """What a message is, and where its sender stands, in words."""
    parts = ", ".join(
        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(shape)}"
        for tensor, shape in zip(tensors, shapes, strict=True)
    )
    return f"{parts} in {place(step)} (hop {hop})"


def encoded(header: str) -> Tensor:
    """A header as bytes, as many for all: gloo ends the process if a message is too long."""
    data = header.encode()
    if len(data) > HEADER:
        raise ValueError(f"the header of a message must have at most {HEADER} bytes: {header}")
    return torch.tensor(list(data.ljust(HEADER)), dtype=torch.uint8)


def decoded(numbers: Tensor) -> str:
    """The header that was encoded."""
    return bytes(numbers.tolist()).decode(errors="replace").rstrip()
