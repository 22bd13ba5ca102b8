"""Finding what the user wants checked: `package.module:name`, or `file.py:name`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref.tree import tree_map
from siglip_ref.types import Tree
from siglip_spec import autodiff
from siglip_spec.autodiff import Face
from siglip_spec.operations import OPERATIONS
from siglip_spec.runner import cases_of
from siglip_spec.score import DType
from siglip_spec.subject import Subject
from siglip_spec.suites import PROFILES


def load_object(address: str) -> tuple[ModuleType, str, Any]:
    """The module, the name in it, and the object that `package.module:name` stands for.

    Modules are looked for in the current folder first.

    Raises ValueError if there is no such module or no such name.
    """
    place, colon, name = address.partition(":")
    if not colon or not place or not name:
        raise ValueError(f"write it as package.module:name or file.py:name, got {address!r}")
    module = _module(place)
    if not hasattr(module, name):
        names = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise ValueError(f"{place} has no {name!r}; it has {names}")
    return module, name, getattr(module, name)


def load_subject(
    address: str, *, operation: str | None = None, dtype: DType | None = None
) -> Subject:
    """The subject at an address; a bare function becomes one.

    operation
        What the function is; by default the operation of its name, or `sigmoid_loss`.
    dtype
        What it computes in; by default float32.

    Torch or JAX differentiate a function whose module uses them. Otherwise it is a function of
    NumPy arrays, and its gradient is what its module has under `<name>_bwd`.

    Raises ValueError if there is nothing there that could be checked.
    """
    module, name, found = load_object(address)
    if isinstance(found, Subject):
        if operation is not None or dtype is not None:
            raise ValueError(f"{address} is a Subject, which says its operations and dtype itself")
        return found
    if not callable(found):
        raise ValueError(f"{address} must be a Subject or a function, got {type(found).__name__}")
    wanted = operation or (name if name in OPERATIONS else "sigmoid_loss")
    if wanted not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {wanted!r}")
    subject = Subject(address, dtype=dtype or "float32", vjp=framework_of(module))
    subject.provides(wanted)(found)
    backward = getattr(module, f"{name}_bwd", None)
    if callable(backward):
        subject.provides(f"{wanted}_bwd")(backward)
    return subject


def operation_of(function: Callable[..., Any], name: str) -> str | None:
    """The operation of this name or, failing that, the one with these argument names."""
    if name in OPERATIONS:
        return name
    arguments = tuple(inspect.signature(function).parameters)
    return next((op.name for op in OPERATIONS.values() if op.inputs == arguments), None)


def _module(place: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if place.endswith(".py"):
            return _module_of_file(Path(place))
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        raise ValueError(f"there is no module {place!r} in {here} or on Python's path") from error


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def framework_of(module: ModuleType) -> Face | None:
    """Torch or JAX, if the module or something in it comes from there; None for plain NumPy."""
    for name, face in (("torch", autodiff.torch), ("jax", autodiff.jax)):
        values = vars(module).values()
        if any(_comes_from(value, name) for value in values):
            return face
    return None


def _comes_from(value: Any, package: str) -> bool:
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return isinstance(home, str) and home.split(".")[0] == package


def float64_inputs(operation: str) -> tuple[dict[str, Tree], Mapping[str, Any]]:
    """Inputs and attributes of the first case of an operation that is no case of refusal."""
    cases = (case for case in cases_of(PROFILES) if case.operation == operation)
    case = next(case for case in cases if case.rejected is None)
    return tree_map(np.array, case.inputs), case.attrs
