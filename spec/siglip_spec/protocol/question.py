"""What a case asks of a subject, as JSON and arrays without any answer, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree
from siglip_spec.operations import OPERATIONS
from siglip_spec.protocol.tensors import Tensors
from siglip_spec.suites import Case, part

Question = dict[str, Any]
"""id, operation, attrs, and the names of inputs, cotangents, outputs and gradients."""

NAMED = ("inputs", "cotangents", "outputs", "gradients")


def question(case: Case) -> Question:
    """The case as JSON. That a case must be rejected does not show."""
    outputs, gradients = _wanted(case)
    return {
        "id": case.id,
        "operation": case.operation,
        "attrs": dict(case.attrs),
        "inputs": [name for name in arrays(case) if name.startswith("in/")],
        "cotangents": [name for name in arrays(case) if name.startswith("cotangent/")],
        "outputs": outputs,
        "gradients": gradients,
    }


def arrays(case: Case) -> Tensors:
    """The inputs and cotangents of a case by their names, `in/zimg` and `cotangent/dloss`."""
    inputs = {f"in/{path}": array for path, array in flatten(case.inputs).items()}
    return inputs | {f"cotangent/d{name}": array for name, array in case.cotangents.items()}


def keyed(case_id: str, named: Mapping[str, np.ndarray]) -> Tensors:
    """Arrays by their keys in a file, `<id>#<name>`."""
    return {f"{case_id}#{name}": array for name, array in named.items()}


def case_of(asked: Mapping[str, Any], tensors: Tensors) -> Case:
    """The case that was asked, without its answer: the inverse of `question` and `arrays`.

    Raises ValueError if the question is none, or if an array it names is missing.
    """
    texts = all(isinstance(asked.get(key), str) for key in ("id", "operation"))
    lists = all(
        isinstance(asked.get(key), list) and all(isinstance(name, str) for name in asked[key])
        for key in NAMED
    )
    if not (texts and lists and isinstance(asked.get("attrs"), dict)):
        raise ValueError(
            f"a question must have the texts id and operation, the object attrs and the lists "
            f"of names {', '.join(NAMED)}, got {dict(asked)!r}"
        )
    names = [*asked["inputs"], *asked["cotangents"]]
    missing = [name for name in names if f"{asked['id']}#{name}" not in tensors]
    if missing:
        raise ValueError(f"case {asked['id']!r} names arrays that are not in its file: {missing}")
    given = {name: tensors[f"{asked['id']}#{name}"] for name in names}
    return Case(
        id=asked["id"],
        profile="",
        operation=asked["operation"],
        clauses=(),
        comment="",
        attrs=asked["attrs"],
        inputs=unflatten(part(given, "in")),
        cotangents={
            name.removeprefix("d"): array for name, array in part(given, "cotangent").items()
        },
    )


def _wanted(case: Case) -> tuple[list[str], list[str]]:
    """The outputs and gradients that the answer has; of a case to reject, that it would have."""
    if case.rejected is None:
        outputs = [name for name in case.tensors if name.startswith("out/")]
        return outputs, [name for name in case.tensors if name.startswith("grad/")]
    operation = OPERATIONS[case.operation]
    outputs = [path for name in operation.outputs for path in _paths(name, case.inputs.get(name))]
    gradients = [
        path
        for name in operation.differentiable
        for path in _paths(f"d{name}", case.inputs.get(name))
        if case.cotangents
    ]
    return [f"out/{path}" for path in outputs], [f"grad/{path}" for path in gradients]


def _paths(name: str, tree: Tree) -> list[str]:
    return list(flatten({name: tree}))
