"""Other projects' tensors as arrays of our own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_float_array(name: str, tensor: Any) -> NDArray[Any]:
    """A copy of a Torch tensor or NumPy array, in float32 or float64.

    Half precision is widened to float32, which is exact: NumPy has no bfloat16. The copy does not
    change when the model it came from is trained on.

    Raises TypeError, with the name of the tensor, for any other dtype.
    """
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        half = tensor.is_floating_point() and tensor.dtype.itemsize == 2
        tensor = (tensor.float() if half else tensor).numpy()
    array = np.array(tensor)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be of a floating dtype, got {array.dtype}")
    return array
