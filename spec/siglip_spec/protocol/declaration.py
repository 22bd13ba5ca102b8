"""What a subject says of itself before it answers: the handshake, and the head of a response."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siglip_spec.operations import OPERATIONS
from siglip_spec.score import PRECISIONS, DType
from siglip_spec.subject import Answerer

PROTOCOL = 1
"""The version in every prompt, response and handshake."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """Name and version, dtypes, and the operations that are provided.

    dtype
        What the subject stores its numbers in, and gets them in.
    accumulate
        What it sums products in.
    gradients
        Those of the operations whose gradients are provided too.
    """

    subject: str
    dtype: DType
    accumulate: DType
    operations: frozenset[str]
    gradients: frozenset[str]

    @property
    def coarsest(self) -> DType:
        """The dtype that sets the tolerances."""
        return max((self.dtype, self.accumulate), key=lambda d: PRECISIONS[d].unit_roundoff)

    @classmethod
    def read(cls, said: object, where: str) -> "Declaration":
        """The declaration in a JSON value.

        Raises ValueError, naming `where` and the key, for anything that is none.
        """
        if not isinstance(said, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {said!r}")
        if said.get("protocol") != PROTOCOL:
            raise ValueError(f"{where}: protocol must be {PROTOCOL}, got {said.get('protocol')!r}")
        subject = said.get("subject")
        if not isinstance(subject, str) or not subject.strip():
            raise ValueError(f"{where}: subject must be a name and version, got {subject!r}")
        operations = _names(said, "operations", tuple(OPERATIONS), where)
        dtype = _dtype(said, "dtype", where)
        return cls(
            subject=subject,
            dtype=dtype,
            accumulate=_dtype(said, "accumulate", where) if "accumulate" in said else dtype,
            operations=operations,
            gradients=_names(said, "gradients", tuple(sorted(operations)), where),
        )


def declare(subject: Answerer) -> dict[str, Any]:
    """The declaration of a Python subject, as JSON."""
    operations = [name for name in OPERATIONS if subject.claims(name)]
    return {
        "protocol": PROTOCOL,
        "subject": subject.name,
        "dtype": subject.dtype,
        "operations": operations,
        "gradients": [name for name in operations if subject.claims_gradient(name)],
    }


def _dtype(said: Mapping[str, Any], key: str, where: str) -> DType:
    for dtype in PRECISIONS:
        if said.get(key) == dtype:
            return dtype
    raise ValueError(
        f"{where}: {key} must be one of {', '.join(PRECISIONS)}, got {said.get(key)!r}"
    )


def _names(said: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> frozenset[str]:
    names = said.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: {key} must be a list of operations, got {names!r}")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{where}: {key} may be of {', '.join(known)}, got {', '.join(unknown)}")
    return frozenset(names)
