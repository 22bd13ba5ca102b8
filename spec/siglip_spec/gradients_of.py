"""`siglip-spec gradcheck`: which function, which gradient, at which inputs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from siglip_ref.tree import flatten, tree_map
from siglip_ref.types import Tree
from siglip_spec.autodiff import Face, Outputs
from siglip_spec.gradcheck import check_gradients, inputs_from, table
from siglip_spec.loading import float64_inputs, framework_of, load_object, operation_of
from siglip_spec.operations import OPERATIONS, Operation
from siglip_spec.subject import call, named


def check_object(
    address: str, gradient: str | None, operation: str | None, shapes: Sequence[str]
) -> tuple[str, bool]:
    """The table of a gradient check of the function at an address, and whether all passed.

    The gradient is the function at the address `gradient`, or `<name>_bwd` beside the function,
    or that of the framework which the function's module uses. The inputs are those of a test
    vector of the operation, or normal arrays of the given `NAME=7,5` shapes.

    Raises ValueError if no gradient or no inputs can be found.
    """
    module, name, function = load_object(address)
    if not callable(function):
        raise ValueError(f"{address} must be a function, got {type(function).__name__}")
    op, inputs, attrs = _question(function, name, operation, shapes)
    face = framework_of(module)
    backward = (
        load_object(gradient)[2] if gradient is not None else getattr(module, f"{name}_bwd", None)
    )
    if backward is None and face is None:
        raise ValueError(
            f"{address} needs a gradient: a function {name}_bwd beside it, or --gradient"
        )

    def forward(given: dict[str, Tree]) -> Outputs:
        native = tree_map(lambda x: _native(face, x), given)
        outputs = named(op.outputs, call(function, op, native, attrs))
        return {key: _plain(face, out) for key, out in outputs.items()}

    def pullback(given: dict[str, Tree], cotangents: Outputs) -> Mapping[str, np.ndarray]:
        native = tree_map(lambda x: _native(face, x), given)
        seeds = {key: _native(face, array) for key, array in cotangents.items()}
        if backward is not None:
            arguments = {f"d{key}": array for key, array in seeds.items()}
            names = tuple(f"d{key}" for key in op.differentiable)
            found = named(names, call(backward, op, native, attrs, arguments))
        else:
            assert face is not None

            def traced(moved: dict[str, Tree]) -> Outputs:
                return named(op.outputs, call(function, op, moved, attrs))

            _, found = face.vjp(traced, native, op.differentiable, seeds)
        return {key: _plain(face, array) for key, array in found.items()}

    records = check_gradients(forward, pullback, inputs, op.differentiable)
    verdict = "every element is the slope" if all(r.passed for r in records) else "NOT the slope"
    text = f"{address} at {_sizes(inputs)}\n{table(records)}\n{verdict}"
    return text, all(record.passed for record in records)


def _question(
    function: Callable[..., Any], name: str, operation: str | None, shapes: Sequence[str]
) -> tuple[Operation, dict[str, Tree], Mapping[str, Any]]:
    """What to ask: an operation of the kit, or one made of the given shapes."""
    if shapes:
        given = dict(_shape(text) for text in shapes)
        unknown = given.keys() - inspect.signature(function).parameters.keys()
        if unknown:
            raise ValueError(f"{name} has no argument {', '.join(sorted(unknown))}")
        names = tuple(given)
        op = Operation(name, names, ("out",), _no_reference, names)
        return op, inputs_from(given), {}
    wanted = operation or operation_of(function, name)
    if wanted is None:
        raise ValueError(
            f"{name} has not the arguments of an operation; say --operation, "
            "or the shape of each argument: --shape x=7,5"
        )
    if wanted not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {wanted!r}")
    op = OPERATIONS[wanted]
    if not op.differentiable:
        raise ValueError(f"{wanted} has no gradient")
    inputs, attrs = float64_inputs(wanted)
    return op, inputs, attrs


def _no_reference(*_: Any) -> Any:
    raise NotImplementedError("this operation is the user's own")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(",") if size)
    except ValueError:
        shape = (-1,)
    if not equals or not name or any(size < 1 for size in shape):
        raise ValueError(f"write a shape as NAME=7,5 (NAME= for a number), got {text!r}")
    return name, shape


def _native(face: Face | None, array: np.ndarray) -> Any:
    fresh = np.array(array)
    return fresh if face is None else face.from_numpy(fresh, "float64")


def _plain(face: Face | None, array: Any) -> np.ndarray:
    if face is None:
        return np.asarray(array)
    if not str(array.dtype).endswith("float64"):
        raise TypeError(
            f"gradients are checked in float64 only, but a result came back in {array.dtype}: "
            "central differences in float32 have about three good digits"
        )
    return face.to_numpy(array)


def _sizes(inputs: dict[str, Tree]) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in flatten(inputs).items())
