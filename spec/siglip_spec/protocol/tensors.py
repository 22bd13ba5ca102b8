"""Named arrays as the bytes of a safetensors file, and back.

A file is the length of its header (8 bytes, little endian), the header (a JSON object from the
name to `dtype`, `shape` and `data_offsets`, counted from the header's end) and the elements, row
by row and little endian. Written here because NumPy has no bfloat16, for which the package
`safetensors` has no call that is the same in all its versions.

Source: the format's description in the repository huggingface/safetensors.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_spec.score import DType

_TAGS: dict[DType, str] = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
_LENGTH_BYTES = 8

Tensors = dict[str, NDArray[Any]]
"""Arrays by name: float64 whatever the file holds, or int64."""


def encode(tensors: Mapping[str, NDArray[Any]], dtype: DType) -> bytes:
    """The file with these arrays: numbers rounded to `dtype`, integers as I64.

    The bytes depend on nothing but the arguments.
    """
    stored = [(name, *_stored(np.asarray(array), dtype)) for name, array in tensors.items()]
    # Large elements first: every array is then aligned to its own element.
    stored.sort(key=lambda entry: (-entry[2].dtype.itemsize, entry[0]))
    header: dict[str, Any] = {}
    position = 0
    for name, tag, array in stored:
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": tag, "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return b"".join(
        [
            len(text).to_bytes(_LENGTH_BYTES, "little"),
            text,
            *(array.tobytes() for _, _, array in stored),
        ]
    )


def decode(data: bytes, file: str) -> Tensors:
    """The arrays of a file: floats of any width as float64, integers as int64.

    Raises ValueError, naming `file` and the key, if the bytes are no such file or if an array
    has a dtype other than F64, F32, F16, BF16, I64 and I32.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or start > len(data):
        raise ValueError(
            f"{file} is no safetensors file: its {len(data)} bytes end before its header does"
        )
    try:
        header = json.loads(data[_LENGTH_BYTES:start])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no safetensors file: its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    elements = memoryview(data)[start:]
    return {key: _loaded(elements, entry, f"{file}: {key!r}") for key, entry in header.items()}


def _stored(array: NDArray[Any], dtype: DType) -> tuple[str, NDArray[Any]]:
    if array.dtype.kind in "iub":
        return "I64", array.astype(_STORED["I64"])
    tag = _TAGS[dtype]
    if tag == "BF16":
        return tag, _bfloat16_bits(array)
    with np.errstate(over="ignore"):  # to infinity, as every rounding does
        return tag, array.astype(_STORED[tag])


def _bfloat16_bits(array: NDArray[Any]) -> NDArray[Any]:
    # The upper half of a float32, rounded to nearest even; a NaN stays one.
    with np.errstate(over="ignore"):
        bits = array.astype("<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype(_STORED["BF16"])


def _loaded(elements: memoryview, entry: object, where: str) -> NDArray[Any]:
    try:
        tag, shape, (begin, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))  # type: ignore[index]
        sizes = [*shape, begin, end]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError("sizes are integers from 0 up")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} must have a dtype, a shape and two data_offsets, got {entry!r}"
        ) from error
    if not isinstance(tag, str) or tag not in _STORED:
        raise ValueError(f"{where} must have a dtype of {', '.join(_STORED)}, got {tag!r}")
    stored = _STORED[tag]
    wanted = math.prod(shape) * stored.itemsize
    if end - begin != wanted or end > len(elements):
        raise ValueError(
            f"{where} has the shape {shape} of {tag}, {wanted} bytes, but data_offsets "
            f"{[begin, end]} in a file with {len(elements)} bytes of elements"
        )
    array = np.frombuffer(elements[begin:end], stored)
    if tag == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array.astype(np.int64 if stored.kind == "i" else np.float64).reshape(shape)
