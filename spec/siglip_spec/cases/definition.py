"""A case before its answer is known: inputs, what it is about, and nothing measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_ref.types import Tree
from siglip_spec.cases.values import Values
from siglip_spec.operations import OPERATIONS
from siglip_spec.suites import Case


def define(
    case_id: str,
    operation: str,
    clauses: str,
    comment: str,
    inputs: dict[str, Tree],
    *,
    attrs: Mapping[str, Any] | None = None,
    cotangents: Mapping[str, float | np.ndarray] | None = None,
    rejected: str | None = None,
) -> Case:
    """A case of an operation; where it has gradients, with a cotangent for each output.

    `cotangents` fixes them, and leaves outputs that it does not name without any; by default all
    are random. A case that must be refused has no outputs to take their shapes from, so it needs
    them given: without any, the question would show that it is one to refuse.
    """
    op = OPERATIONS[operation]
    attrs = dict(attrs or {})
    if set(inputs) != set(op.inputs) or set(attrs) != set(op.attrs):
        raise ValueError(f"{case_id}: inputs and attrs must be those of {operation}")
    seeds: dict[str, np.ndarray] = {}
    if cotangents is not None:
        seeds = {name: np.asarray(value, dtype=np.float64) for name, value in cotangents.items()}
    elif op.differentiable and rejected is not None:
        raise ValueError(f"{case_id}: a case that must be refused needs its cotangents given")
    elif op.differentiable:
        values = Values(f"{case_id}#cotangents")
        out = op.reference(inputs, attrs, {}).out
        seeds = {name: values.normal(*out[name].shape) for name in op.outputs}
    return Case(
        id=case_id,
        profile=case_id.split(".", 1)[0],
        operation=operation,
        clauses=tuple(clauses.split()),
        comment=comment,
        attrs=attrs,
        inputs=inputs,
        cotangents=seeds,
        rejected=rejected,
    )
