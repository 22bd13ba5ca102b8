"""On the device the kernels write what their NumPy twins do."""

import cupy
import numpy as np
import pytest

from cupy_cases.kernels import *  # noqa: F403  (the tests, which the host runs too)
from siglip_cupy import kernels


class DeviceModule:
    """Kernels by name, launched on NumPy arrays: they are copied to the device and back."""

    def __init__(self):
        self._module = cupy.RawModule(
            code=kernels.source(), options=kernels.OPTIONS, name_expressions=kernels.INSTANCES
        )

    def get_function(self, name):
        """The kernel, called with (grid, block, args)."""
        kernel = self._module.get_function(name)

        def launch(grid, block, args):
            there = [cupy.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
            kernel(grid, block, tuple(there))
            for arg, x in zip(args, there, strict=True):
                if isinstance(arg, np.ndarray) and arg.flags.writeable:
                    arg[...] = x.get()

        return launch


@pytest.fixture(scope="module")
def modules():
    """Twice the same: a kernel gives the same bits whenever it runs."""
    return [DeviceModule(), DeviceModule()]
