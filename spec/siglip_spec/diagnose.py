"""What can be said about a wrong answer: the pattern of the error, the known bug, the first place.

Looked for in this order: not finite; wrong shape; sign flipped; transposed; a constant factor; the
answer of a known bug; the first intermediate that differs.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import numpy as np

from siglip_ref.tree import flatten, tree_map
from siglip_ref.types import Tree
from siglip_spec import mutants
from siglip_spec.operations import OPERATIONS, Answer
from siglip_spec.score import LAMBDA, PRECISIONS, DType, Score, score
from siglip_spec.suites import Case

_LARGEST_DENOMINATOR = 16
_SHARP_ENOUGH = 1e-3
"""Relative tolerance below which a single number can be said to be a multiple of the truth."""
_MOST_AXES = 4
_VISIBLE = 4.0
"""A tensor has a sign and a size if its largest element is that many tolerances from 0."""
_PROBE_TOLERANCE = 64.0
"""In u rms: nobody measured S of intermediates. The core in float32 reaches 32 in the vectors."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, a line each, and the flag of the known bug that the answer matches."""

    findings: tuple[str, ...]
    suspected: str | None


class _Match(NamedTuple):
    score: float
    flag: str
    summary: str


def diagnose(case: Case, answer: Answer, scores: Mapping[str, Score], dtype: DType) -> Diagnosis:
    """Look at an answer of which some tensors are wrong.

    answer
        float64 arrays.
    scores
        Of the tensors `out/…` and `grad/…` that could be scored; one that is missing there, but
        not in the answer, has the wrong shape.
    """
    got = {f"out/{name}": array for name, array in answer.out.items()}
    got |= {f"grad/{name}": array for name, array in answer.grad.items()}
    got = {name: np.asarray(got[name], dtype=np.float64) for name in case.tensors if name in got}
    wrong = [name for name in got if name not in scores or not scores[name].passed]
    with np.errstate(all="ignore"):  # wrong answers may be of any size
        matches = _matches(case, got, wrong, dtype)
        findings = (
            *_patterns(case, got, wrong, dtype),
            *_where(wrong, got),
            *_known_bugs(matches),
            *_first_difference(case, answer.probe, dtype),
        )
    return Diagnosis(findings, matches[0].flag if matches else None)


# --- the pattern of the error ---------------------------------------------------------------------


def _patterns(
    case: Case, got: dict[str, np.ndarray], wrong: list[str], dtype: DType
) -> Iterator[str]:
    """One line for each pattern, with the tensors that show it."""
    found: dict[str, list[str]] = {}
    for name in wrong:
        pattern = _pattern(case, name, got[name], dtype)
        if pattern:
            found.setdefault(pattern, []).append(name)
    for pattern, names in found.items():
        yield f"{_listed(names)}: {pattern}"


def _pattern(case: Case, name: str, got: np.ndarray, dtype: DType) -> str:
    want = case.expected[name]
    strange = ~np.isfinite(got)
    if strange.any() and np.isfinite(want).all():
        first = [int(i) for i in np.argwhere(strange)[0]]
        value = got[tuple(first)]
        at = f", first {value} at {first}" if first else f": {value}"
        return f"{int(strange.sum())} of {got.size} elements not finite{at}"
    if got.shape != want.shape:
        how = _permuted(case, name, got, dtype)
        return f"shape {got.shape}, wanted {want.shape}" + (f": it is {how}" if how else "")
    # Numbers that vanish in theory have any sign, and are any multiple of each other.
    zeros = np.zeros_like(want)
    if score(zeros, want, case.scale[name], case.underflow[name], dtype).value < _VISIBLE:
        return ""
    if _agrees(case, name, -got, dtype):
        return "the sign is flipped"
    how = _permuted(case, name, got, dtype)
    return how or _factor(case, name, got, dtype)


def _permuted(case: Case, name: str, got: np.ndarray, dtype: DType) -> str:
    """How the axes are mixed up, if that is all that is wrong."""
    want = case.expected[name]
    if got.ndim != want.ndim or not 2 <= got.ndim <= _MOST_AXES:
        return ""
    for axes in sorted(permutations(range(got.ndim)), key=lambda axes: axes[::-1] != axes):
        back = np.transpose(got, axes)
        if back.shape == want.shape and _agrees(case, name, back, dtype):
            order = tuple(int(i) for i in np.argsort(axes))
            return "transposed" if got.ndim == 2 else f"transposed, with the axes {order}"
    return ""


def _factor(case: Case, name: str, got: np.ndarray, dtype: DType) -> str:
    """The constant factor between the answer and the truth, if there is one.

    A single number is a multiple of any other: there the factor must have a meaning, and the
    tolerance must be small enough to tell it from its neighbours.
    """
    want = case.expected[name]
    weights = 1 / np.maximum(np.square(np.asarray(case.scale[name], dtype=np.float64)), 1e-300)
    weights = weights / weights.max()
    factor = float(np.sum(weights * want * got) / np.sum(weights * want * want))
    if not math.isfinite(factor) or factor == 0:
        return "all elements are 0" if not got.any() else ""
    if not _agrees(case, name, got, dtype, factor):
        return ""
    named = [(v, text) for v, text in _names(case) if _agrees(case, name, got, dtype, v)]
    if got.size == 1:
        blur = LAMBDA * PRECISIONS[dtype].unit_roundoff * float(case.scale[name].max())
        if not named or blur > _SHARP_ENOUGH * float(np.max(np.abs(want))):
            return ""
    meaning = min(named, key=lambda pair: abs(pair[0] - factor))[1] if named else ""
    number = _rational(case, name, got, dtype, factor)
    return f"wrong by the factor {number}{meaning}" + (" in all elements" if got.size > 1 else "")


def _rational(case: Case, name: str, got: np.ndarray, dtype: DType, factor: float) -> str:
    """p/q with the smallest q that is within the tolerance, or the number."""
    for q in range(1, _LARGEST_DENOMINATOR + 1):
        p = round(factor * q)
        if p and _agrees(case, name, got, dtype, p / q):
            return f"{p}/{q}" if q > 1 else f"{p}"
    return f"{factor:.5g}"


def _names(case: Case) -> Iterator[tuple[float, str]]:
    """Numbers that a factor may stand for, with what to print behind it."""
    for name, value in _sizes(case).items():
        yield value, f" = {name}"
        yield 1 / value, f" = 1/{name}"
    yield from ((2.0, ""), (0.5, ""))


def _sizes(case: Case) -> dict[str, float]:
    """The quantities of the case that losses are wrongly divided or multiplied by."""
    shards = OPERATIONS[case.operation].shards
    sizes: dict[str, float] = {}
    for key, name in (("zimg", "n"), ("ztxt", "m"), ("images", "n"), ("tokens", "n")):
        if key in case.inputs and name not in sizes:
            parts = list(flatten(case.inputs[key]).values())
            sizes[name] = float(sum(part.shape[0] for part in parts))
            if key == "zimg":
                sizes["d"] = float(parts[0].shape[1])
    if sizes.get("m") == sizes.get("n"):
        sizes.pop("m", None)
    if shards:
        sizes["the world size"] = float(len(case.inputs[shards[0]]))
    scalars = flatten(case.inputs)
    for path, value in scalars.items():
        if path.rsplit("/", maxsplit=1)[-1] == "t_prime":
            sizes["t"] = float(np.exp(value))
    return sizes


def _is_truth(case: Case, name: str, got: np.ndarray, dtype: DType) -> bool:
    return got.shape == case.expected[name].shape and _agrees(case, name, got, dtype)


def _agrees(case: Case, name: str, got: np.ndarray, dtype: DType, factor: float = 1.0) -> bool:
    """Whether `got` is `factor` times the truth, to `factor` times its tolerance."""
    scale = abs(factor) * case.scale[name].astype(np.float64)
    return score(got, factor * case.expected[name], scale, case.underflow[name], dtype).passed


def _where(wrong: list[str], got: dict[str, np.ndarray]) -> Iterator[str]:
    """Values and gradients fail apart in two ways that say where to look."""
    outputs = [name for name in got if name.startswith("out/")]
    gradients = [name for name in got if name.startswith("grad/")]
    if wrong and outputs and not set(outputs) & set(wrong):
        right = [name for name in gradients if name not in wrong]
        rest = f"; right are {_listed(right)}" if right else ""
        yield f"every output is right: the fault is in the gradient of {_listed(wrong)}{rest}"
    elif wrong and gradients and not set(gradients) & set(wrong):
        yield "every gradient is right: the outputs may be off by a constant"


# --- known bugs -----------------------------------------------------------------------------------


def _matches(
    case: Case, got: dict[str, np.ndarray], wrong: list[str], dtype: DType
) -> tuple[_Match, ...]:
    """The known bugs whose answer this is, in all tensors, where it is not the truth.

    Those that show by their rounding errors only are run in the dtype of the subject.
    """
    if not wrong:
        return ()
    found = tuple(sorted(_matching(case, case, got, wrong, dtype)))
    storage = PRECISIONS[dtype].storage
    if found or storage is np.float64:
        return found

    def rounded(tree: Tree) -> Tree:
        return tree_map(lambda x: x.astype(storage) if x.dtype == np.float64 else x, tree)

    inputs = {name: rounded(tree) for name, tree in case.inputs.items()}
    asked = replace(case, inputs=inputs, cotangents=rounded(case.cotangents))
    return tuple(sorted(_matching(case, asked, got, wrong, dtype)))


def _matching(
    case: Case, asked: Case, got: dict[str, np.ndarray], wrong: list[str], dtype: DType
) -> Iterator[_Match]:
    for mutant, answer in mutants.answers(asked):
        if answer is None:
            continue
        bug = {f"out/{name}": np.asarray(x, np.float64) for name, x in answer.out.items()}
        bug |= {f"grad/{name}": np.asarray(x, np.float64) for name, x in answer.grad.items()}
        if not got.keys() <= bug.keys() or any(got[x].shape != bug[x].shape for x in got):
            continue
        if any(_is_truth(case, name, bug[name], dtype) for name in wrong):
            continue
        worst = 0.0
        for name in (*wrong, *(name for name in got if name not in wrong)):
            worst = max(worst, _like(case, name, got[name], bug[name], dtype))
            if worst > 1:
                break
        else:
            yield _Match(worst, mutant.flag, f"{mutant.summary} ({', '.join(mutant.clauses)})")


def _like(case: Case, name: str, got: np.ndarray, bug: np.ndarray, dtype: DType) -> float:
    """The score of `got` against a wrong answer, in tolerances of the truth.

    Where the wrong answer is larger than the truth its rounding errors are, too; and what is too
    large for the dtype is infinite in it.
    """
    largest = float(np.finfo(PRECISIONS[dtype].storage).max)
    bug = np.where(np.abs(bug) > largest, np.copysign(np.inf, bug), bug)
    same = (got == bug) | (np.isnan(got) & np.isnan(bug))
    if same.all():
        return 0.0
    want = case.expected[name]
    got, bug = np.where(same, 0.0, got), np.where(same, 0.0, bug)
    if bug.shape != want.shape or not np.isfinite(bug).all():
        return math.inf
    nonzero = want != 0
    growth = np.median(np.abs(bug[nonzero] / want[nonzero])) if nonzero.any() else 1.0
    scale = case.scale[name].astype(np.float64) * max(1.0, float(growth))
    return score(got, bug, np.maximum(scale, np.abs(bug)), case.underflow[name], dtype).value


def _known_bugs(matches: tuple[_Match, ...]) -> Iterator[str]:
    if not matches:
        return
    best, *others = matches
    yield (
        f"matches the known bug {best.flag} to {best.score:.2g} tolerances in all tensors: "
        f"{best.summary}"
    )
    if others:
        yield f"as well as {_listed([match.flag for match in others])}: this case cannot tell"


# --- the first intermediate -----------------------------------------------------------------------


def _first_difference(case: Case, probes: Mapping[str, np.ndarray], dtype: DType) -> Iterator[str]:
    """The first of the subject's probes that differs, after which one that agrees."""
    last = None
    wanted = {
        name.removeprefix("probe/"): array
        for name, array in case.expected.items()
        if name.startswith("probe/") and name.removeprefix("probe/") in probes
    }
    for name, want in wanted.items():
        got = np.asarray(probes[name], dtype=np.float64)
        head = f"{last} agrees, {name} does not" if last else f"{name}, the first, does not agree"
        if got.shape != want.shape:
            yield f"{head}: it has the shape {got.shape}, wanted {want.shape}"
            return
        error = _relative_error(got, want)
        if not error <= _PROBE_TOLERANCE * PRECISIONS[dtype].unit_roundoff:
            yield f"{head}: its largest error is {error:.2g} of its root mean square"
            return
        last = name
    if wanted:
        yield f"all {len(wanted)} probes agree: the fault comes after {last}"


def _relative_error(got: np.ndarray, want: np.ndarray) -> float:
    rms = float(np.sqrt(np.mean(want * want)))
    error = float(np.max(np.abs(got - want)))
    return error / rms if rms else (math.inf if error else 0.0)


def _listed(names: list[str]) -> str:
    """`a, b, c and 4 more`."""
    shown = 3
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
