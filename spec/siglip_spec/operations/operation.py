"""What an operation of the kit is: named inputs to named outputs and gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from siglip_ref.tree import flatten
from siglip_ref.types import Array, Tree


class Answer(NamedTuple):
    """What an implementation returns for a case: arrays by path.

    out
        The outputs by name, `loss`; those that are trees by path, `params/img/…`.
    grad
        The gradient of each differentiable input x under `dx`, or `dx/path`.
    probe
        Named intermediates; may be empty.
    """

    out: dict[str, Array]
    grad: dict[str, Array]
    probe: dict[str, Array]


Reference = Callable[[dict[str, Tree], Mapping[str, Any], Mapping[str, Array]], Answer]
"""(inputs, attrs, cotangents by output) to the answer; empty cotangents ask for no gradient."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A function that an implementation may provide, and the reference's own.

    inputs
        Names in their order. An input is an array, a tree, or the shards of one array.
    attrs
        Names of the settings, JSON values.
    outputs
        Names in their order.
    differentiable
        The inputs that have gradients.
    shards
        The inputs that are given as one part for each rank, `{"0": …, "1": …}`.
    reference
        The answer of `siglip_ref`, on arrays of any namespace.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reference: Reference
    differentiable: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()


def answer(
    out: dict[str, Tree],
    grad: dict[str, Tree] | None = None,
    probe: dict[str, Array] | None = None,
) -> Answer:
    """An answer from trees, flattened to paths."""
    return Answer(flatten(out), flatten(grad or {}), probe or {})
