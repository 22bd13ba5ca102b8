"""Arrays of any library as messages: in the memory of the host, each with a header."""

from typing import NamedTuple

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_cupy_array,
    is_jax_array,
    is_numpy_array,
    is_torch_array,
)
from numpy.typing import NDArray

from siglip_ref.faults import place
from siglip_ref.types import Array

Host = NDArray[np.generic]

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32")
AXES = 4
HEADER = 2 + 2 + AXES
"""Numbers in a header: hop, ring step, dtype, number of axes, and their sizes."""


class Header(NamedTuple):
    """What a message is, and where its sender stands."""

    hop: int
    step: int
    dtype: str
    shape: tuple[int, ...]

    def encode(self) -> list[int]:
        """The header in numbers, `HEADER` of them."""
        padding = [0] * (AXES - len(self.shape))
        code = DTYPES.index(self.dtype)
        return [self.hop, self.step, code, len(self.shape), *self.shape, *padding]

    def __str__(self) -> str:
        """The header in words."""
        return f"{self.dtype} {self.shape} in {place(self.step)} (hop {self.hop})"


def decode(numbers: NDArray[np.int64]) -> Header:
    """The header that was encoded; a dtype or number of axes out of range shows as such."""
    hop, step, code, ndim, *sizes = (int(number) for number in numbers)
    known = 0 <= code < len(DTYPES)
    dtype = DTYPES[code] if known else f"dtype {code}"
    return Header(hop, step, dtype, tuple(sizes[: max(0, ndim)]))


def dtype_name(array: Array) -> str:
    """The name of an array's dtype without that of its library."""
    return str(array.dtype).rpartition(".")[2]


def to_host(array: Array) -> Host:
    """The array in the memory of the host in one piece; bfloat16 as the integers of its bits.

    Raises ValueError on more axes, or another dtype, than a message may have.
    """
    name = dtype_name(array)
    if name not in DTYPES or array.ndim > AXES:
        raise ValueError(
            f"a message must have at most {AXES} axes and one of the dtypes {', '.join(DTYPES)}, "
            f"got {array.ndim} axes of {name}"
        )
    if is_torch_array(array):
        array = array.detach().cpu()
        if name == "bfloat16":
            array = array.view(array_namespace(array).uint16)
    elif is_cupy_array(array):
        array = array.get()
    elif not is_numpy_array(array) and not is_jax_array(array):
        array = array.to_device(array_namespace(array).__array_namespace_info__().default_device())
    host = np.asarray(array, order="C")
    return host.view(np.uint16) if name == "bfloat16" else host


def room_for(shape: tuple[int, ...], dtype: str) -> Host:
    """An array to receive a message into."""
    return np.empty(shape, dtype="uint16" if dtype == "bfloat16" else dtype)


def as_bytes(host: Host) -> NDArray[np.uint8]:
    """The bytes of a host array in one piece, of which they are a view.

    MPICH ends the process at a message of doubles that does not end with a whole one, before its
    header can be held against what was expected.
    """
    return host.reshape(-1).view(np.uint8)


def to_home(host: Host, like: Array) -> Array:
    """What `to_host` was made from: a host array in the library, dtype and device of another."""
    bits = dtype_name(like) == "bfloat16"
    if bits and not is_torch_array(like):
        host = host.view(np.dtype(like.dtype))
    if is_numpy_array(like):
        return host
    xp = array_namespace(like)
    array = xp.asarray(host, device=device(like))
    return array.view(like.dtype) if bits and is_torch_array(like) else array
