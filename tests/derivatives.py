"""What makes a backward pass right: it is the slope of the forward pass, and its adjoint.

Every leaf of the inputs is moved by itself, so that a small gradient cannot hide behind a large
one. Errors are held to ‖gradient‖ ‖direction‖, by Cauchy-Schwarz the steepest slope that directions
of this length can have: the slope along one random direction may be near zero by chance, and has
then no digits of its own to compare.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from backends import NUMPY, library, map_arrays
from siglip_ref.tree import flatten, tree_map_with_path
from siglip_spec.gradcheck import STENCIL

SLOPE = 1e-9
"""Relative error allowed to an analytic gradient against central differences in float64."""

ADJOINT = 1e-12
"""Relative error allowed to ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ in float64."""

STEP = 1e-3
"""Length of the stencil's step. Of a function of size 1 that is analytic within r along the
direction it leaves 576 STEP⁸ / r⁹, 6e-13 at r = 0.1, and differences round to 2.1 eps / STEP."""

ROUNDING = 16 * 2.0**-52 / STEP
"""Of the magnitudes that are summed up: the rounding error of the differences."""


class Case(NamedTuple):
    """A forward pass at its inputs, and the backward pass that belongs to it.

    `forward(*inputs)` gives (out, res), and `backward(res, dout)` the cotangents of the inputs in
    their order, bare if there is one input only. `inputs` are the differentiable arguments by name,
    as float64 NumPy arrays or trees of them.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: dict[str, Any]


def run(case: Case, dout: Any, backend: Any = NUMPY, dtype: Any = np.float64) -> Any:
    """The output and the tree of cotangents, in NumPy, as computed by `backend` in `dtype`."""
    inputs = map_arrays(lambda x: backend.asarray(x.astype(dtype)), tuple(case.inputs.values()))
    out, res = backend.call(case.forward, *inputs)
    got = backend.call(case.backward, res, backend.asarray(np.asarray(dout, dtype=dtype)))
    got = got if isinstance(got, tuple) else (got,)
    gradients = dict(zip(case.inputs, map_arrays(backend.to_numpy, got), strict=True))
    return backend.to_numpy(out), gradients


def cotangent(case: Case, rng: np.random.Generator) -> Any:
    """A random cotangent of the output."""
    out, _ = case.forward(*case.inputs.values())
    return rng.standard_normal(out.shape)


def assert_gradient_is_the_slope(case: Case, rng: np.random.Generator) -> None:
    """⟨gradient, direction⟩ is the central difference of ⟨dout, forward⟩ along the direction."""
    dout = cotangent(case, rng)
    out, gradients = run(case, dout)
    noise = ROUNDING * float(np.sum(np.abs(dout * out)))
    for path, direction, inputs_at in _directions(case, rng):

        def value(step: float, inputs_at: Any = inputs_at) -> float:
            out, _ = case.forward(*inputs_at(step * STEP).values())
            return float(np.sum(dout * out))

        slope = sum(w * (value(i) - value(-i)) for i, w in STENCIL.items()) / STEP
        analytic, scale = _along(gradients, path, direction)
        error = abs(analytic - slope)
        assert error <= SLOPE * scale + noise, (
            f"{path}: the gradient says {analytic!r}, the differences say {slope!r}; "
            f"off by {error:.3g}, {error / (scale or 1):.3g} of the steepest slope"
        )


def assert_backward_is_the_adjoint(case: Case, rng: np.random.Generator) -> None:
    """⟨dout, J direction⟩ = ⟨Jᵀ dout, direction⟩ with J from JAX's forward mode."""
    jax = library("jax")
    dout = cotangent(case, rng)
    _, gradients = run(case, dout)

    @jax.jit
    def pushforward(inputs: Any, tangents: Any) -> Any:
        # In the order of case.inputs: JAX sorts the keys of a dict.
        primals, moves = ([tree[name] for name in case.inputs] for tree in (inputs, tangents))
        return jax.jvp(lambda *args: case.forward(*args)[0], primals, moves)[1]

    still = map_arrays(np.zeros_like, case.inputs)
    for path, direction, _ in _directions(case, rng):
        tangent = np.asarray(pushforward(case.inputs, _with_leaf(still, path, direction)))
        pushed = float(np.sum(dout * tangent))
        pulled, scale = _along(gradients, path, direction)
        scale = max(scale, float(np.linalg.norm(dout) * np.linalg.norm(tangent)))
        error = abs(pushed - pulled)
        assert error <= ADJOINT * scale, (
            f"{path}: ⟨dout, J direction⟩ = {pushed!r}, ⟨Jᵀ dout, direction⟩ = {pulled!r}; "
            f"off by {error:.3g}, {error / (scale or 1):.3g} of the steepest slope"
        )


def _directions(case: Case, rng: np.random.Generator) -> Iterator[tuple[str, Any, Any]]:
    """For each leaf its path, a random unit direction, and the inputs at a distance along it."""
    for path, leaf in flatten(case.inputs).items():
        direction = rng.standard_normal(leaf.shape)
        direction = direction / np.linalg.norm(direction)

        def inputs_at(distance: float, path: str = path, move: Any = direction) -> Any:
            moved = flatten(case.inputs)[path] + distance * move
            return _with_leaf(case.inputs, path, moved)

        yield path, direction, inputs_at


def _with_leaf(tree: Any, wanted: str, new: Any) -> Any:
    return tree_map_with_path(lambda path, leaf: new if path == wanted else leaf, tree)


def _along(gradients: Any, path: str, direction: Any) -> tuple[float, float]:
    """⟨gradient, direction⟩ of one leaf, and the scale of its error.

    The gradient of a key bias vanishes in theory, since a softmax does not see a shift: it is held
    to the gradient of its kernel.
    """
    leaf = flatten(gradients)
    sized = leaf[path.replace("key/bias", "key/kernel")]
    return float(np.sum(leaf[path] * direction)), float(np.linalg.norm(sized))
