"""What the reports have in common: tallies by clause, groups of failures, and plain words."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siglip_spec.clauses import CLAUSES
from siglip_spec.runner import Record, Report
from siglip_spec.score import LAMBDA

UNKNOWN_TITLE = "a clause that this version does not know"


@dataclass(frozen=True, slots=True)
class Tally:
    """How many checks ended how, and in words the worst score of those that had to pass.

    It is `error` where a check failed without a score, and empty where there is none.
    """

    passed: int
    failed: int
    expected: int
    not_claimed: int
    worst: str

    @property
    def planned(self) -> int:
        """All of them."""
        return self.passed + self.failed + self.expected + self.not_claimed

    @property
    def executed(self) -> int:
        """Those that were run."""
        return self.planned - self.not_claimed

    @property
    def mark(self) -> str:
        """✗ if any failed, ✓ if any passed, ! if all failed as expected, – if none was run."""
        if self.failed:
            return "✗"
        if self.passed:
            return "✓"
        return "!" if self.expected else "–"


@dataclass(frozen=True, slots=True)
class ClauseRow:
    """The checks of a clause, those of outputs apart from those of gradients."""

    id: str
    title: str
    records: tuple[Record, ...]
    value: Tally
    gradient: Tally

    @property
    def mark(self) -> str:
        """The mark of all checks together."""
        return tally(self.records).mark


def tally(records: Iterable[Record]) -> Tally:
    """Count the records by status, and find the worst."""
    counts: Counter[str] = Counter()
    worst: Record | None = None
    for record in records:
        counts[record.status] += 1
        refused = record.status == "passed" and record.score is None
        binding = record.status in ("passed", "failed") and not refused
        if binding and (worst is None or badness(record) > badness(worst)):
            worst = record
    return Tally(
        passed=counts["passed"],
        failed=counts["failed"],
        expected=counts["expected"],
        not_claimed=counts["not claimed"],
        worst="" if worst is None else number(worst.score),
    )


def badness(record: Record) -> tuple[int, float]:
    """A key by which worse records are larger: no score of a failure, then NaN, then the scores."""
    if record.score is None:
        return (2 if record.status == "failed" else -1, 0.0)
    return (1, 0.0) if math.isnan(record.score) else (0, record.score)


def clause_rows(report: Report) -> list[ClauseRow]:
    """A row for every clause that the records name, in the order of the specification."""
    by_clause: dict[str, list[Record]] = {}
    for record in report.records:
        for clause in record.clauses:
            by_clause.setdefault(clause, []).append(record)
    order = [clause for clause in CLAUSES if clause in by_clause]
    order += sorted(by_clause.keys() - CLAUSES.keys())
    return [
        ClauseRow(
            id=clause,
            title=CLAUSES[clause].title if clause in CLAUSES else UNKNOWN_TITLE,
            records=tuple(by_clause[clause]),
            value=tally(r for r in by_clause[clause] if not is_gradient(r)),
            gradient=tally(r for r in by_clause[clause] if is_gradient(r)),
        )
        for clause in order
    ]


def is_gradient(record: Record) -> bool:
    """Whether the check is of a gradient, not of an output or of a refusal."""
    return record.tensor.startswith("grad/")


def exercised(rows: Sequence[ClauseRow]) -> int:
    """How many of the clauses were checked at least once."""
    return sum(row.value.executed + row.gradient.executed > 0 for row in rows)


def failure_groups(records: Iterable[Record]) -> list[tuple[Record, ...]]:
    """The failures, those of a case with the same cause together, the worst tensor first.

    The cause is the known bug that they match; without a comparison, what happened instead.
    """
    groups: dict[tuple[str, str, str | None, str], list[Record]] = {}
    for record in records:
        if record.status == "failed":
            happened = "" if was_compared(record) else record.message.replace(record.tensor, "")
            key = (record.case, record.dtype, record.suspected, happened)
            groups.setdefault(key, []).append(record)
    return [tuple(sorted(group, key=badness, reverse=True)) for group in groups.values()]


def was_compared(record: Record) -> bool:
    """Whether a wrong number was found, unlike a crash, a wrong shape or an unexpected pass."""
    return record.got is not None and not (record.score is not None and record.score <= 1)


def suspects(report: Report) -> list[tuple[str, int]]:
    """The known bugs that failures match and how many match each, the most frequent first."""
    return Counter(
        record.suspected
        for record in report.records
        if record.status == "failed" and record.suspected is not None
    ).most_common()


def explanation(record: Record) -> list[str]:
    """The findings, of which the one on the known bug begins with an arrow."""
    if record.suspected is None:
        return list(record.findings)
    told = f"matches the known bug {record.suspected}"
    lines = [
        f"→ you match{finding.removeprefix('matches')}" if finding.startswith(told) else finding
        for finding in record.findings
    ]
    if lines == list(record.findings):
        lines.append(f"→ you match the known bug {record.suspected}")
    return lines


def by_reason(records: Iterable[Record], status: str) -> dict[str, list[Record]]:
    """The records of this status by their reason, in order."""
    reasons: dict[str, list[Record]] = {}
    for record in records:
        if record.status == status:
            reasons.setdefault(record.reason or "no reason given", []).append(record)
    return reasons


def verdict(report: Report) -> str:
    """The statement of conformance, or why there is none."""
    statement = report.statement()
    if statement is not None:
        return statement
    counts = report.counts()
    if counts["failed"]:
        why = f"{count(counts['failed'], 'check')} failed"
    elif was_empty(report):
        why = "nothing was checked"
    elif report.lam != LAMBDA:
        why = f"λ is {report.lam:g}, not {LAMBDA:g}"
    elif counts["not claimed"]:
        why = f"{count(counts['not claimed'], 'check')} of {report.planned} not claimed"
    else:
        why = "no check passed"
    return f"No statement of conformance: {why}."


def was_empty(report: Report) -> bool:
    """Whether no check was executed."""
    return all(record.status == "not claimed" for record in report.records)


def identity(report: Report) -> str:
    """`812 planned = 790 passed + 6 failed + 4 expected + 12 not claimed`."""
    parts = " + ".join(f"{number} {status}" for status, number in report.counts().items())
    return f"{report.planned} planned = {parts}"


def heading(report: Report) -> str:
    """Kit, vectors, subject, dtype and profiles in a line."""
    plural = "" if len(report.profiles) == 1 else "s"
    return (
        f"siglip-spec {report.spec_version}, vectors {report.vectors_version} "
        f"(sha256 {report.vectors_sha256[:12]}), subject {report.subject}, {report.dtype}, "
        f"profile{plural} {' + '.join(report.profiles) or 'none'}"
    )


def experiment(report: Report) -> str | None:
    """The warning that λ is not the published one, if it is not."""
    if report.lam == LAMBDA:
        return None
    return (
        f"λ = {report.lam:g} instead of {LAMBDA:g}: an experiment, and no statement of conformance."
    )


def number(value: float | None) -> str:
    """A score in few characters, rounded away from the limit 1; `error` where there is none."""
    if value is None:
        return "error"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    if value >= 1000:
        return f"{value:.1e}"
    if 0 < value < 0.01:
        return "<0.01"
    if value >= 10:
        return f"{value:.3g}"
    return f"{math.ceil(value * 100) / 100 if value > 1 else value:.2f}"


def count(how_many: int, what: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{how_many} {what}{'' if how_many == 1 else 's'}"


def repro(record: Record) -> str:
    """The command that prints a script which shows the case with NumPy alone."""
    return f"siglip-spec repro {record.case}"


def printable(text: str) -> str:
    """One line that no control character, escape sequence or lone surrogate can leave.

    What a subject says ends up in terminals, HTML and XML.
    """
    line = "".join(" " if c.isspace() else c for c in text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
