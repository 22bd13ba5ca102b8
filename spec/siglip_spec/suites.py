"""The test vectors: cases with inputs, expected values and scales, read from the package's files.

A suite is a JSON file that a person can read and a safetensors file with the arrays; see
`spec/07-conformance.md` for the format.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from safetensors.numpy import load

from siglip_ref.tree import unflatten
from siglip_ref.types import Tree

PROFILES = (
    "loss",
    "primitives",
    "image",
    "text",
    "model",
    "ring",
    "trajectory",
    "accuracy",
)
"""The sets of cases that an implementation can claim, in the order of their size."""

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """One question to an implementation, with the true answer.

    id
        `suite/sizes/what`, for ever the name of this case.
    inputs
        By name, trees of float64 arrays whose values are exact in every dtype, or integers.
    cotangents
        By output name; empty where there is no gradient.
    rejected
        What is wrong with the inputs (`shape`), if the only right answer is an error.
    expected
        float64, by `out/…`, `grad/…` and `probe/…`.
    scale, underflow
        S and A of the tolerance (see `score`) for each expected output and gradient.
    kills
        For each dtype the flags of the known bugs that this case notices.
    """

    id: str
    profile: str
    operation: str
    clauses: tuple[str, ...]
    comment: str
    attrs: Mapping[str, Any]
    inputs: dict[str, Tree]
    cotangents: dict[str, np.ndarray] = field(default_factory=dict)
    rejected: str | None = None
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    scale: dict[str, np.ndarray] = field(default_factory=dict)
    underflow: dict[str, np.ndarray] = field(default_factory=dict)
    kills: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def suite(self) -> str:
        """The first part of the id."""
        return self.id.split("/", 1)[0]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The outputs and gradients that are checked, or `rejected`."""
        return tuple(self.scale) if self.rejected is None else ("rejected",)


@cache
def manifest() -> Mapping[str, Any]:
    """Versions, counts and the sha256 of every file of the vectors."""
    return dict(json.loads(_read("manifest.json")))


@cache
def load_profile(profile: str) -> tuple[Case, ...]:
    """All cases of a profile, in the order of its file.

    Raises ValueError for a profile that does not exist.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    suite = json.loads(_read(f"{profile}.json"))
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for key, array in load(_read(f"{profile}.safetensors")).items():
        case, name = key.split("#", 1)
        array.setflags(write=False)
        tensors.setdefault(case, {})[name] = array
    return tuple(
        _case(profile, group, entry, tensors.get(entry["id"], {}))
        for group in suite["groups"]
        for entry in group["cases"]
    )


def load_case(case_id: str) -> Case:
    """The case of this id.

    Raises ValueError if there is none.
    """
    for profile in PROFILES:
        for case in load_profile(profile):
            if case.id == case_id:
                return case
    raise ValueError(f"there is no case {case_id!r}; `siglip-spec list` prints all")


def part(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors under `prefix/`, by the rest of their name, in order."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): array for name, array in tensors.items() if name.startswith(start)
    }


def _case(
    profile: str, group: Mapping[str, Any], entry: Mapping[str, Any], tensors: Tensors
) -> Case:
    ordered = {name: tensors[name] for name in entry["tensors"]}
    expected = {
        name: array
        for name, array in ordered.items()
        if name.split("/", 1)[0] in ("out", "grad", "probe")
    }
    return Case(
        id=entry["id"],
        profile=profile,
        operation=group["operation"],
        clauses=tuple(entry["clauses"]),
        comment=entry["comment"],
        attrs=entry["attrs"],
        inputs=unflatten(part(ordered, "in")),
        cotangents={
            name.removeprefix("d"): array for name, array in part(ordered, "cotangent").items()
        },
        rejected=entry.get("rejected"),
        expected=expected,
        scale=part(ordered, "scale"),
        underflow=part(ordered, "underflow"),
        kills={dtype: tuple(flags) for dtype, flags in entry.get("kills", {}).items()},
    )


def _read(name: str) -> bytes:
    return files("siglip_spec").joinpath("vectors").joinpath(name).read_bytes()
