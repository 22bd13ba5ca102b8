"""Exit with 0 if the core on NumPy in float64 conforms, judged by the vectors alone.

What cosmic-ray runs on every mutant of the core: see docs/mutation.md.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The sources beside this file, mutated, and not those that may be installed.
sys.path[:0] = [str(ROOT), str(ROOT / "spec")]

import numpy as np  # noqa: E402

from siglip_spec import PROFILES, load_profile  # noqa: E402
from siglip_spec.generate import worst_score  # noqa: E402
from siglip_spec.scales import reference_answer  # noqa: E402


def first_wrong_case():
    """The id of a case that the core gets wrong; None if there is none."""
    np.seterr(all="ignore")
    for case in (case for p in PROFILES if p != "trajectory" for case in load_profile(p)):
        right = case.rejected is not None or (
            worst_score(case, reference_answer(case), "float64") <= 1
        )
        if not right:
            return case.id
    return None


if __name__ == "__main__":
    sys.exit(first_wrong_case())
