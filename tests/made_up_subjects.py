"""Subjects whose answers are made from the truth: the kit must see what each of them is."""

from dataclasses import dataclass, field

import numpy as np

from siglip_spec.operations import OPERATIONS, Answer
from siglip_spec.score import tolerance
from siglip_spec.subject import NotClaimedError, RefusedError


def truth(case):
    """The expected values of a case, by tensor."""
    return {name: case.expected[name] for name in case.scale}


def zeros(case):
    return {name: np.zeros_like(array) for name, array in truth(case).items()}


def nan(case):
    return {name: np.full_like(array, np.nan) for name, array in truth(case).items()}


def off_by(tolerances, dtype="float32"):
    """The truth, with every element moved by this many tolerances, up and down in turn."""

    def answer(case):
        moved = {}
        for name, want in truth(case).items():
            allowed = tolerance(case.scale[name], case.underflow[name], dtype)
            signs = np.where(np.arange(want.size) % 2, -1.0, 1.0).reshape(want.shape)
            moved[name] = want + tolerances * signs * allowed
        return moved

    return answer


@dataclass
class MadeUp:
    """A subject that answers `values(case)` for some operations, and refuses what it must."""

    values: object
    operations: tuple = tuple(OPERATIONS)
    dtype: str = "float32"
    name: str = "made up 1.0"
    expected_failures: dict = field(default_factory=dict)
    gradients: bool = True
    refuses: bool = True
    asked: list = field(default_factory=list)

    def claims(self, operation):
        return operation in self.operations

    def claims_gradient(self, operation):
        return self.gradients and operation in self.operations

    def answer(self, case):
        self.asked.append(case.id)
        if not self.claims(case.operation):
            raise NotClaimedError(case.operation)
        if case.rejected is not None:
            if self.refuses:
                raise RefusedError("ValueError: bad input")
            return Answer({}, {}, {})
        values = self.values(case)
        groups = [
            {
                name.removeprefix(f"{group}/"): array
                for name, array in values.items()
                if name.startswith(f"{group}/")
            }
            for group in ("out", "grad")
        ]
        return Answer(*groups, {})
