"""Known bugs of SigLIP implementations, each as an edit of the reference that can be run.

    mutant = MUTANTS["MeanOverPairs"]
    load(mutant).OPERATIONS["sigmoid_loss"].reference(inputs, attrs, cotangents)

They show that the test vectors notice what goes wrong in practice, and tell a user which known
bug his answer looks like. All run on NumPy.
"""

from collections.abc import Iterator

import numpy as np

from siglip_spec.mutants.accuracy import ACCURACY_MUTANTS
from siglip_spec.mutants.loader import load
from siglip_spec.mutants.loss import LOSS_MUTANTS
from siglip_spec.mutants.mutant import Edit, Mutant
from siglip_spec.mutants.primitives import PRIMITIVE_MUTANTS
from siglip_spec.mutants.ring import RING_MUTANTS
from siglip_spec.mutants.text import TEXT_MUTANTS
from siglip_spec.mutants.tiles import TILE_MUTANTS
from siglip_spec.mutants.towers import TOWER_MUTANTS
from siglip_spec.mutants.training import TRAINING_MUTANTS
from siglip_spec.mutants.undetectable import TOO_COARSE, UNDETECTABLE
from siglip_spec.operations import Answer
from siglip_spec.suites import Case

MUTANTS: dict[str, Mutant] = {
    mutant.flag: mutant
    for mutant in (
        *LOSS_MUTANTS,
        *ACCURACY_MUTANTS,
        *TILE_MUTANTS,
        *RING_MUTANTS,
        *PRIMITIVE_MUTANTS,
        *TOWER_MUTANTS,
        *TEXT_MUTANTS,
        *TRAINING_MUTANTS,
    )
}
"""All by their flag."""


def answers(case: Case) -> Iterator[tuple[Mutant, Answer | None]]:
    """What each known bug of the case's operation answers; None if it fails on this case.

    A case that must be refused has no answers.
    """
    for mutant in MUTANTS.values():
        if case.operation in mutant.operations and case.rejected is None:
            yield mutant, _answer(mutant, case)


def _answer(mutant: Mutant, case: Case) -> Answer | None:
    operation = load(mutant).OPERATIONS[case.operation]
    try:
        with np.errstate(all="ignore"):
            return Answer(*operation.reference(case.inputs, case.attrs, case.cotangents))
    except Exception:
        if mutant.may_fail:
            return None
        raise


__all__ = ["MUTANTS", "TOO_COARSE", "UNDETECTABLE", "Edit", "Mutant", "answers", "load"]
