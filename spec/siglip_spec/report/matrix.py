"""Several reports as one table: which implementation conforms in which profile."""

import html
from collections.abc import Iterable

from siglip_spec.report.overview import by_reason, count, printable, tally
from siglip_spec.runner import Record, Report
from siglip_spec.score import LAMBDA
from siglip_spec.suites import PROFILES


def markdown_table(reports: Iterable[Report]) -> str:
    """A Markdown table: a row for each subject and dtype, a column for each profile.

    A cell is `passed/planned · worst score`; expected failures refer to their reasons below.
    Reports of one subject and dtype share a row.

    Raises ValueError if there is no report, if two disagree in their versions or both have the
    same profile of the same subject, or if one is an experiment with another λ.
    """
    reports = list(reports)
    if not reports:
        raise ValueError("reports must not be empty")
    versions = {(r.spec_version, r.vectors_version, r.vectors_sha256) for r in reports}
    if len(versions) > 1:
        raise ValueError(f"reports must be of one version, got {sorted(versions)}")
    cells: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for report in reports:
        if report.lam != LAMBDA:
            raise ValueError(f"lam must be {LAMBDA:g} in every report, got {report.lam:g}")
        row = cells.setdefault((report.subject, report.dtype), {})
        for profile in report.profiles:
            if profile in row:
                raise ValueError(f"there are two reports of {report.subject!r} on {profile}")
            row[profile] = [r for r in report.records if r.profile == profile]
    profiles = [p for p in PROFILES if any(p in row for row in cells.values())]
    notes: dict[str, int] = {}
    lines = [
        f"| implementation | dtype | {' | '.join(profiles)} |",
        f"| --- | --- |{' --- |' * len(profiles)}",
    ]
    for (subject, dtype), row in cells.items():
        texts = [_cell(row[profile], notes) if profile in row else "–" for profile in profiles]
        lines.append(f"| {_escaped(subject)} | {dtype} | {' | '.join(texts)} |")
    spec, vectors, sha256 = versions.pop()
    lines += ["", f"Passed/planned checks · worst error in tolerances. Spec {spec}, "]
    lines[-1] += f"vectors {vectors} (sha256 {sha256[:12]})."
    if notes:
        lines += ["", "Expected failures:", ""]
        lines += [f"{mark}. {_escaped(reason)}" for reason, mark in notes.items()]
    return "\n".join([*lines, ""])


def _cell(records: list[Record], notes: dict[str, int]) -> str:
    found = tally(records)
    if not found.executed:
        return "not claimed"
    parts = ["✗ "] if found.failed else []
    parts.append(f"{found.passed}/{found.planned}")
    if found.worst:
        parts.append(f" · {found.worst}")
    if found.not_claimed:
        parts.append(f", {found.not_claimed} not claimed")
    for reason, expected in by_reason(records, "expected").items():
        mark = notes.setdefault(reason, len(notes) + 1)
        parts.append(f", {count(len(expected), 'expected failure')}<sup>{mark}</sup>")
    return "".join(parts)


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=False).replace("|", "\\|")
