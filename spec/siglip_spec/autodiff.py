"""Ready faces for frameworks that differentiate by themselves: arrays in, gradients, arrays out.

    subject = Subject("acme 2.1", dtype="float32", vjp=autodiff.torch)

The framework is imported when a face is used, not before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Array, Tree
from siglip_spec.score import DType

Outputs = dict[str, Array]
"""Arrays by path."""

Function = Callable[[dict[str, Tree]], Outputs]
"""Inputs by name to outputs by path."""


@dataclass(frozen=True, slots=True)
class Face:
    """How a framework takes arrays, differentiates, and gives arrays back."""

    from_numpy: Callable[[np.ndarray, DType], Array]
    to_numpy: Callable[[Array], np.ndarray]
    vjp: Callable[[Function, dict[str, Tree], tuple[str, ...], Outputs], tuple[Outputs, Outputs]]
    """(function, inputs, differentiable names, cotangents by output) to (outputs, gradients)."""


def _torch_from_numpy(array: np.ndarray, dtype: DType) -> Array:
    import torch  # noqa: PLC0415 - only who asks for this face needs the framework

    tensor = torch.from_numpy(np.array(array))
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def _torch_to_numpy(tensor: Array) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _torch_vjp(
    function: Function, inputs: dict[str, Tree], names: tuple[str, ...], cotangents: Outputs
) -> tuple[Outputs, Outputs]:
    import torch  # noqa: PLC0415

    still = {name: tree for name, tree in inputs.items() if name not in names}
    leaves = flatten({name: inputs[name] for name in names})
    leaves = {path: leaf.detach().requires_grad_() for path, leaf in leaves.items()}
    outputs = function({**still, **unflatten(leaves)})
    wanted = [name for name in cotangents if outputs[name].requires_grad]
    gradients = torch.autograd.grad(
        [outputs[name] for name in wanted],
        list(leaves.values()),
        [cotangents[name].to(outputs[name].dtype) for name in wanted],
        allow_unused=True,
        materialize_grads=True,
    )
    return outputs, {f"d{path}": g for path, g in zip(leaves, gradients, strict=True)}


def _jax_from_numpy(array: np.ndarray, dtype: DType) -> Array:
    import jax.numpy as jnp  # noqa: PLC0415

    if not np.issubdtype(array.dtype, np.floating):
        return jnp.asarray(array)
    if dtype == "float64" and jnp.zeros(0, dtype=jnp.float64).dtype != jnp.float64:
        raise ValueError("a float64 subject on JAX needs jax.config.update('jax_enable_x64', True)")
    return jnp.asarray(array, dtype=dtype)


def _jax_vjp(
    function: Function, inputs: dict[str, Tree], names: tuple[str, ...], cotangents: Outputs
) -> tuple[Outputs, Outputs]:
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    still = {name: tree for name, tree in inputs.items() if name not in names}
    moving = {name: inputs[name] for name in names}
    outputs, pullback = jax.vjp(lambda moved: function({**still, **moved}), moving)
    seeds = {
        name: jnp.asarray(cotangents[name], dtype=out.dtype).reshape(out.shape)
        if name in cotangents
        else jnp.zeros_like(out)
        for name, out in outputs.items()
    }
    (gradients,) = pullback(seeds)
    return outputs, {f"d{path}": g for path, g in flatten(gradients).items()}


def _numpy_of_jax(array: Array) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


torch = Face(_torch_from_numpy, _torch_to_numpy, _torch_vjp)
"""PyTorch, on the CPU, by `torch.autograd.grad`."""

jax = Face(_jax_from_numpy, _numpy_of_jax, _jax_vjp)
"""JAX, on its default device, by `jax.vjp`."""
