"""The array libraries the core runs on in the tests, and what every call must keep.

`Backend.call` runs a function of trees of arrays and asserts that it stayed pure and at home: the
inputs are unwritten, and all that comes back is of the inputs' library, device and precision.
"""

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace, device, is_array_api_obj


def library(name: str) -> Any:
    """The module `name`; without it the test is skipped, saying so, and under CI=true it fails."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        reason = f"{name} is not installed: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true allows no skip)")
        pytest.skip(reason)
    if name == "jax":
        module.config.update("jax_enable_x64", True)
    if name == "torch":
        module.set_num_threads(1)
    return module


@dataclass(frozen=True)
class Backend:
    """One way to hold arrays, and to call functions on them.

    module
        The library to import; `namespace` is the array namespace inside it.
    strictest
        Run with array-api-strict's flags against all that depends on values.
    device
        The name of a device other than the library's default one.
    readonly
        Hand out arrays that NumPy refuses to write.
    jit
        Compile what is called.
    """

    name: str
    module: str
    namespace: str
    strictest: bool = False
    device: str | None = None
    readonly: bool = False
    jit: bool = False

    def require(self) -> None:
        """Skip the test, or fail it under CI=true, if the library is missing."""
        library(self.module)

    def asarray(self, x: Any) -> Any:
        """`x`, a NumPy array, as an array of this backend; its dtype is kept."""
        xp = importlib.import_module(self.namespace)
        options = {} if self.device is None else {"device": xp.Device(self.device)}
        array = xp.asarray(np.array(x), **options)
        if self.readonly:
            array.setflags(write=False)
        return array

    def to_numpy(self, x: Any) -> Any:
        """`x` in NumPy."""
        if self.device is not None:
            x = x.to_device(importlib.import_module(self.namespace).Device("CPU_DEVICE"))
        return np.asarray(x)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(*args)` with trees of this backend's arrays, having asserted what must be kept."""
        before = [self.to_numpy(x).copy() for x in leaves(args)]
        with self.flags():
            result = library("jax").jit(fn)(*args) if self.jit else fn(*args)
        for kept, x in zip(before, leaves(args), strict=True):
            assert kept.tobytes() == self.to_numpy(x).tobytes(), "an input was written to"
        assert_same_home(args, result)
        return result

    def flags(self) -> AbstractContextManager[Any]:
        """The flags the backend runs under."""
        if not self.strictest:
            return nullcontext()
        return library("array_api_strict").ArrayAPIStrictFlags(
            api_version="2025.12", boolean_indexing=False, data_dependent_shapes=False
        )


NUMPY = Backend("numpy", "numpy", "numpy")

BACKENDS = (
    NUMPY,
    Backend("numpy:readonly", "numpy", "numpy", readonly=True),
    Backend("array_api_strict:strictest", "array_api_strict", "array_api_strict", strictest=True),
    Backend("array_api_strict:device1", "array_api_strict", "array_api_strict", device="device1"),
    Backend("torch", "torch", "torch"),
    Backend("jax", "jax", "jax.numpy"),
    Backend("jax:jit", "jax", "jax.numpy", jit=True),
)


def map_arrays(fn: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `fn` applied to its arrays; dicts, lists and (named) tuples are branches."""
    if is_array_api_obj(tree):
        return fn(tree)
    if isinstance(tree, dict):
        return {name: map_arrays(fn, child) for name, child in tree.items()}
    if isinstance(tree, tuple | list):
        children = [map_arrays(fn, child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    assert tree is None, f"neither an array nor a tree of arrays: {tree!r}"
    return None


def leaves(tree: Any) -> list[Any]:
    """The arrays of a tree, in order."""
    found: list[Any] = []
    map_arrays(found.append, tree)
    return found


def assert_same_home(args: Any, result: Any) -> None:
    """All of `result` is of the one library and device of `args`, and of their precision.

    From 16-bit inputs a residual may be wider, so there the tests look at the outputs themselves.
    """
    inputs, outputs = leaves(args), leaves(result)
    xp = array_namespace(*inputs)
    assert outputs, "nothing came back"
    assert all(array_namespace(x) is xp for x in outputs), "an output is of another library"
    assert {str(device(x)) for x in outputs} <= {str(device(x)) for x in inputs}, "device changed"
    precisions = {str(x.dtype) for x in inputs if xp.isdtype(x.dtype, "real floating")}
    if not any("16" in name for name in precisions):
        found = {str(x.dtype) for x in outputs if xp.isdtype(x.dtype, "real floating")}
        assert found <= precisions, f"dtype changed from {precisions} to {found}"
