"""How much room there is around λ; as a script it writes docs/tolerances.md.

From below, the worst score of implementations that are right; from above, the best score at which
any case notices each known bug. λ multiplies every tolerance, so all scores are ∝ 1/λ.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from siglip_spec import PROFILES, check_subject, load_profile  # noqa: E402
from siglip_spec.generate import stored, worst_score  # noqa: E402
from siglip_spec.mutants import MUTANTS, TOO_COARSE, answers  # noqa: E402
from siglip_spec.score import LAMBDA, PRECISIONS  # noqa: E402
from subjects.core import CORES  # noqa: E402

PAGE = ROOT / "docs" / "tolerances.md"
WEAKEST = 8


def worst_of_the_right():
    """(subject, dtype) to its worst score in each profile, leaving out expected failures."""
    rows = {}
    for subject in CORES:
        scores = []
        for profile in PROFILES:
            report = check_subject(subject, profile, timeout=600)  # JAX compiles for a minute
            assert not report.counts()["failed"], (subject.name, profile)
            passed = [r.score for r in report.records if r.status == "passed" and r.score]
            scores.append(max(passed, default=0))
        rows[subject.name, subject.dtype] = scores
    return rows


def best_of_the_wrong():
    """dtype to {flag: best score}: how clearly some case notices each bug."""
    best = {dtype: dict.fromkeys(MUTANTS, 0.0) for dtype in PRECISIONS}
    for case in (case for profile in PROFILES for case in load_profile(profile)):
        if case.rejected is not None:
            continue
        for dtype, precision in PRECISIONS.items():
            for mutant, wrong in answers(stored(case, precision.storage)):
                for judged in PRECISIONS if dtype == "float64" else (dtype,):
                    score = np.inf if wrong is None else worst_score(case, wrong, judged)
                    best[judged][mutant.flag] = max(best[judged][mutant.flag], score)
    return best


def page(right, wrong):
    worst = max(max(scores) for scores in right.values())
    lines = [
        "# Tolerances",
        "",
        f"Every tolerance of the conformance kit is λ (u max(S, u rms(S)) + η A), λ = {LAMBDA:g} "
        "for all cases, tensors and dtypes ([spec/07-conformance.md](../spec/07-conformance.md), "
        "NUM-1). This page says how much room that leaves on either side. "
        "`python tests/spec/tolerance_study.py` writes it.",
        "",
        "## Implementations that are right",
        "",
        f"Worst score over all checks of a profile; 1 is the limit. The worst is {worst:.2f}. "
        "Expected failures, which [conformance.md](conformance.md) lists, are left out.",
        "",
        "| subject | dtype | " + " | ".join(PROFILES) + " |",
        "| --- | --- |" + " ---: |" * len(PROFILES),
    ]
    for (name, dtype), scores in right.items():
        lines.append(f"| {name} | {dtype} | " + " | ".join(f"{s:.2f}" for s in scores) + " |")
    lines += [
        "",
        "## Known bugs",
        "",
        f"Each of the {len(MUTANTS)} known bugs is run on every case of its operations. A case "
        "notices it in a dtype if its answer is more than 2 tolerances off, so that it is still "
        "noticed when rounding takes its part.",
        "",
        "| dtype | noticed | too fine | the least clearly noticed, with the best score |",
        "| --- | ---: | ---: | --- |",
    ]
    for dtype, scores in wrong.items():
        excused = {flag for flag, dtypes in TOO_COARSE.items() if dtype in dtypes}
        noticed = {flag: s for flag, s in scores.items() if flag not in excused}
        weakest = sorted(noticed.items(), key=lambda item: item[1])[:WEAKEST]
        shown = ", ".join(f"{flag} {s:.3g}" for flag, s in weakest)
        lines.append(f"| {dtype} | {len(noticed)} | {len(excused)} | {shown} |")
    lines += ["", "Those that are too fine for a dtype, with the reason:", ""]
    lines += ["| bug | dtype | best score | why |", "| --- | --- | ---: | --- |"]
    for flag, dtypes in TOO_COARSE.items():
        for dtype, reason in dtypes.items():
            lines.append(f"| {flag} | {dtype} | {wrong[dtype][flag]:.2g} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(worst_of_the_right(), best_of_the_wrong()), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
