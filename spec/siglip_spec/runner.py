"""Running cases against a subject: every planned check ends in exactly one of four states.

    planned = passed + failed + expected + not claimed

A check is one tensor of one case. Nothing executed is no success: see `Report.ok`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from siglip_spec.operations import Answer
from siglip_spec.score import LAMBDA, Score, score
from siglip_spec.subject import Answerer, NotClaimedError, RefusedError, SubjectError
from siglip_spec.suites import PROFILES, Case, load_profile, manifest
from siglip_spec.time_limit import time_limit

Status = Literal["passed", "failed", "expected", "not claimed"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "expected", "not claimed")

TIMEOUT = 60.0
"""Seconds that a subject has for a case."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one check: a tensor of a case, or `rejected` if it must be refused."""

    check: str
    case: str
    tensor: str
    profile: str
    operation: str
    clauses: tuple[str, ...]
    dtype: str
    status: Status
    score: float | None = None
    worst_index: tuple[int, ...] | None = None
    got: float | None = None
    want: float | None = None
    tolerance: float | None = None
    message: str = ""
    """What is wrong, in a line; empty if nothing is."""
    findings: tuple[str, ...] = ()
    """What the kit can tell of the cause, a line each."""
    suspected: str | None = None
    """The flag of the known bug that the answer matches."""
    reason: str | None = None
    """Why it is expected to fail, or is not claimed."""
    seconds: float = 0.0
    """Time of the case, on the first of its checks."""


@dataclass(frozen=True, slots=True)
class Report:
    """All records of a run, and what they were run against."""

    subject: str
    dtype: str
    profiles: tuple[str, ...]
    spec_version: str
    vectors_version: str
    vectors_sha256: str
    lam: float
    records: tuple[Record, ...]

    @property
    def planned(self) -> int:
        """How many checks there are in the profiles."""
        return len(self.records)

    @property
    def ok(self) -> bool:
        """Nothing failed, and something was executed."""
        counts = self.counts()
        return counts["failed"] == 0 and counts["passed"] > 0

    def counts(self) -> dict[Status, int]:
        """The number of checks in each state; they sum up to `planned`."""
        return {status: sum(r.status == status for r in self.records) for status in STATUSES}

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the failures if there are any, or if nothing was executed."""
        if self.ok:
            return
        failed = [r for r in self.records if r.status == "failed"]
        lines = [f"{r.check} ({', '.join(r.clauses)}): {r.message}" for r in failed]
        raise AssertionError("\n".join(lines) or "nothing was checked: the subject claims nothing")

    def statement(self) -> str | None:
        """The sentence of conformance; None if it cannot be made.

        It needs every check of the profiles claimed, none failed, and λ as published.
        """
        counts = self.counts()
        if not self.ok or counts["not claimed"] or self.lam != LAMBDA:
            return None
        expected = f", {counts['expected']} expected failures" if counts["expected"] else ""
        plural = "s" if len(self.profiles) > 1 else ""
        return (
            f"{self.subject} conforms to the SigLIP spec {self.spec_version}, "
            f"profile{plural} {' + '.join(self.profiles)}, {self.dtype}, "
            f"vectors {self.vectors_version} (sha256 {self.vectors_sha256[:12]}){expected}."
        )


def check_subject(
    subject: Answerer,
    profile: str | Iterable[str] = "loss",
    *,
    lam: float = LAMBDA,
    timeout: float = TIMEOUT,
    stop_at_failure: bool = False,
) -> Report:
    """Run every case of the profiles (`all` for all of them) against a subject.

    Another λ than the published one is for experiments: the report says so, and makes no
    statement.

    Raises ValueError for an unknown profile, and for an expected failure that names no check.
    """
    profiles = profiles_of(profile)
    check_expected_failures(subject)
    records: list[Record] = []
    for case in cases_of(profiles):
        found = run_case(subject, case, lam=lam, timeout=timeout)
        records.extend(found)
        if stop_at_failure and any(r.status == "failed" for r in found):
            break
    return report_of(subject, profiles, records, lam)


def report_of(
    subject: Answerer, profiles: tuple[str, ...], records: Iterable[Record], lam: float = LAMBDA
) -> Report:
    """The report of these records, with the versions of the vectors."""
    versions = manifest()
    return Report(
        subject=subject.name,
        dtype=subject.dtype,
        profiles=profiles,
        spec_version=versions["spec"],
        vectors_version=versions["vectors"],
        vectors_sha256=versions["sha256"],
        lam=lam,
        records=tuple(records),
    )


def profiles_of(profile: str | Iterable[str]) -> tuple[str, ...]:
    """The names of the profiles asked for.

    Raises ValueError for one that does not exist.
    """
    names = (profile,) if isinstance(profile, str) else tuple(profile)
    if names == ("all",):
        return PROFILES
    for name in names:
        if name not in PROFILES:
            raise ValueError(f"profile must be all or one of {', '.join(PROFILES)}, got {name!r}")
    return names


def cases_of(profiles: Iterable[str]) -> Iterator[Case]:
    """The cases of the profiles, in order."""
    for profile in profiles:
        yield from load_profile(profile)


def checks_of(case: Case) -> tuple[str, ...]:
    """The ids of the checks of a case."""
    return tuple(f"{case.id}[{tensor}]" for tensor in case.tensors)


_VALUES = ("LOSS-", "ENC-")
_GRADIENTS_OF = {
    "GRAD-1": ("grad/dzimg",),
    "GRAD-2": ("grad/dztxt",),
    "GRAD-3": ("grad/dt_prime",),
    "GRAD-4": ("grad/db",),
    "GRAD-5": ("grad/dzimg", "grad/dztxt", "grad/dt_prime"),
}


def clauses_of(case: Case, tensor: str) -> tuple[str, ...]:
    """Those clauses of a case that this tensor of it shows.

    Outputs show the clauses on values and gradients those on gradients, GRAD-1 to GRAD-5 each
    those of its own; all other clauses are shown by every tensor.
    """
    gradient = tensor.startswith("grad/")
    shown = tuple(clause for clause in case.clauses if _shows(clause, tensor, gradient))
    return shown or case.clauses


def _shows(clause: str, tensor: str, gradient: bool) -> bool:
    if clause.startswith("GRAD-"):
        return gradient and tensor.startswith(_GRADIENTS_OF.get(clause, ("",)))
    return not (gradient and clause.startswith(_VALUES))


def check_expected_failures(subject: Answerer) -> None:
    """Raise ValueError if an expected failure has no reason or names no check of the vectors."""
    known = [name for case in cases_of(PROFILES) for name in (case.id, *checks_of(case))]
    for pattern, reason in subject.expected_failures.items():
        if not reason.strip():
            raise ValueError(f"the expected failure {pattern!r} needs a reason")
        if not any(matches(pattern, name) for name in known):
            raise ValueError(f"the expected failure {pattern!r} names no case and no check")


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern`, in which `*` stands for anything."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    if not name.startswith(first) or not name.endswith(rest[-1]):
        return False
    position = len(first)
    for piece in rest[:-1]:
        found = name.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return position <= len(name) - len(rest[-1])


def run_case(
    subject: Answerer, case: Case, *, lam: float = LAMBDA, timeout: float = TIMEOUT
) -> tuple[Record, ...]:
    """The records of all checks of a case; whatever the subject does costs this case only."""
    started = time.perf_counter()
    records = tuple(_outcomes(subject, case, lam, timeout))
    seconds = time.perf_counter() - started
    records = (replace(records[0], seconds=seconds), *records[1:])
    return tuple(_with_expectations(subject, records))


def _outcomes(subject: Answerer, case: Case, lam: float, timeout: float) -> Iterator[Record]:
    blank = {tensor: _record(subject, case, tensor) for tensor in case.tensors}
    if not subject.claims(case.operation):
        for record in blank.values():
            yield replace(record, reason=f"{case.operation} is not provided")
        return
    try:
        with time_limit(timeout):
            answer = subject.answer(case)
    except NotClaimedError as error:
        yield from (replace(record, reason=str(error)) for record in blank.values())
    except RefusedError as error:
        refused = case.rejected is not None
        message = "" if refused else f"raised {error}"
        status: Status = "passed" if refused else "failed"
        yield from (replace(r, status=status, message=message) for r in blank.values())
    except (SubjectError, TimeoutError) as error:
        yield from (replace(r, status="failed", message=str(error)) for r in blank.values())
    else:
        yield from _judged(subject, case, answer, lam, blank)


def _judged(
    subject: Answerer, case: Case, answer: Answer, lam: float, blank: dict[str, Record]
) -> Iterator[Record]:
    if case.rejected is not None:
        message = f"accepted inputs of a wrong {case.rejected}: {case.comment}"
        yield replace(blank["rejected"], status="failed", message=message)
        return
    got = {f"out/{name}": array for name, array in answer.out.items()}
    got |= {f"grad/{name}": array for name, array in answer.grad.items()}
    scores: dict[str, Score] = {}
    records: list[Record] = []
    for tensor, record in blank.items():
        if tensor.startswith("grad/") and not subject.claims_gradient(case.operation):
            reason = f"no gradients of {case.operation} are provided"
            records.append(replace(record, reason=reason))
            continue
        problem = _misfit(tensor, got, case)
        if problem:
            records.append(replace(record, status="failed", score=np.inf, message=problem))
            continue
        result = score(
            got[tensor],
            case.expected[tensor],
            case.scale[tensor],
            case.underflow[tensor],
            subject.dtype,
            lam,
        )
        scores[tensor] = result
        records.append(
            replace(
                record,
                status="passed" if result.passed else "failed",
                score=result.value,
                worst_index=result.worst_index,
                got=result.got,
                want=result.want,
                tolerance=result.tolerance,
                message="" if result.passed else _message(result),
            )
        )
    if not any(record.status == "failed" for record in records):
        yield from records
        return
    # Needed for a failure only, and it brings the known bugs with it.
    from siglip_spec.diagnose import diagnose  # noqa: PLC0415

    diagnosis = diagnose(case, answer, scores, subject.dtype)
    for record in records:
        failed = record.status == "failed"
        yield (
            replace(record, findings=diagnosis.findings, suspected=diagnosis.suspected)
            if failed
            else record
        )


def _misfit(tensor: str, got: dict[str, np.ndarray], case: Case) -> str:
    if tensor not in got:
        return f"{tensor} is missing; the subject returned {', '.join(sorted(got)) or 'nothing'}"
    want = case.expected[tensor].shape
    if got[tensor].shape != want:
        return f"{tensor} has the shape {got[tensor].shape}, wanted {want}"
    return ""


def _message(result: Score) -> str:
    at = f" at {list(result.worst_index)}" if result.worst_index else ""
    return (
        f"got {result.got:.5g}{at}, want {result.want:.5g}: the error is {result.value:.3g} "
        f"tolerances of {result.tolerance:.2g}"
    )


def _record(subject: Answerer, case: Case, tensor: str) -> Record:
    return Record(
        check=f"{case.id}[{tensor}]",
        case=case.id,
        tensor=tensor,
        profile=case.profile,
        operation=case.operation,
        clauses=clauses_of(case, tensor),
        dtype=subject.dtype,
        status="not claimed",
    )


def _with_expectations(subject: Answerer, records: tuple[Record, ...]) -> Iterator[Record]:
    """Failures that were expected are marked so; an expectation that nothing meets is a failure.

    One that names the case is met by any failing check of it.
    """
    case = records[0].case
    failing = any(record.status == "failed" for record in records)
    for record in records:
        reasons = {
            pattern: reason
            for pattern, reason in subject.expected_failures.items()
            if matches(pattern, case) or matches(pattern, record.check)
        }
        executed = record.status in ("passed", "failed")
        if not reasons or not executed:
            yield record
            continue
        pattern, reason = next(iter(reasons.items()))
        met = record.status == "failed" or (failing and matches(pattern, case))
        if record.status == "failed":
            yield replace(record, status="expected", reason=reason)
        elif met:
            yield record
        else:
            message = f"passed, but {pattern!r} was expected to fail: {reason}"
            yield replace(record, status="failed", message=message)
