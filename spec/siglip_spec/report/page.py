"""A report as one HTML file that needs nothing else: no script, no font, no network."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from siglip_spec.report.overview import (
    ClauseRow,
    Tally,
    badness,
    by_reason,
    clause_rows,
    count,
    exercised,
    experiment,
    explanation,
    failure_groups,
    heading,
    identity,
    number,
    printable,
    repro,
    suspects,
    tally,
    verdict,
    was_compared,
    was_empty,
)
from siglip_spec.runner import Record, Report

_CLASSES = {
    "✓": "passed",
    "✗": "failed",
    "!": "expected",
    "–": "skipped",
    "not claimed": "skipped",
}
_DECADES = 4.0


def html_page(report: Report) -> str:
    """The page: verdict, counts, suspected bugs, and a row for each clause that opens its checks.

    A bar shows a score on a logarithmic scale; the tick in its middle is the tolerance.
    """
    rows = clause_rows(report)
    title = _text(f"{report.subject}: SigLIP conformance")
    css = files("siglip_spec.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>\n{css}</style></head><body>",
        *_header(report, rows),
        *_table(rows),
        *_reasons(report, "expected", "Expected failures"),
        *_reasons(report, "not claimed", "Not claimed"),
        f'<footer class="faint">{_text(heading(report))}</footer>',
        "</body></html>",
    ]
    return "\n".join([*parts, ""])


def _header(report: Report, rows: Sequence[ClauseRow]) -> list[str]:
    counts = report.counts()
    warning = experiment(report)
    conforms = report.statement() is not None
    state = "passed" if conforms else "expected" if report.ok else "failed"
    parts = [f'<p class="banner warning">{_text(warning)}</p>'] if warning else []
    profiles = " + ".join(report.profiles) or "none"
    plural = "" if len(report.profiles) == 1 else "s"
    parts += [
        f"<h1>{_text(report.subject)} <small>{_text(report.dtype)}</small></h1>",
        f'<p class="faint">Conformance to the SigLIP spec {_text(report.spec_version)}, '
        f"profile{plural} {_text(profiles)}</p>",
    ]
    if was_empty(report):
        parts.append('<p class="banner failed">NOTHING WAS CHECKED</p>')
    parts.append(f'<p class="banner {state}">{_text(verdict(report))}</p>')
    bars = "".join(
        f'<i class="{_CLASSES.get(status, status)}" style="flex:{many}"></i>'
        for status, many in counts.items()
        if many
    )
    parts += [
        f'<div class="stack" aria-hidden="true">{bars}</div>',
        f'<p class="number" style="white-space:normal">{_text(identity(report))}</p>',
        f"<p>clauses exercised {exercised(rows)} of {len(rows)}</p>",
    ]
    failing = count(counts["failed"], "failing check")
    for flag, matching in suspects(report):
        told = f"→ you match the known bug {flag} in {matching} of {failing}"
        parts.append(f'<p class="suspect">{_text(told)}</p>')
    return parts


def _table(rows: Sequence[ClauseRow]) -> list[str]:
    if not rows:
        return []
    parts = [
        "<h2>Clauses</h2>",
        '<p class="faint">✓ passes, ✗ fails, ! fails as expected, – not checked. '
        "Numbers: the worst error in tolerances, and how many checks. A row opens its checks.</p>",
        '<div class="table">',
        '<div class="row head"><span></span><span></span><span></span>'
        "<span>value</span><span>gradient</span></div>",
    ]
    first_failing = next((row for row in rows if row.mark == "✗"), None)
    for row in rows:
        opened = " open" if row is first_failing else ""
        state = _CLASSES[row.mark]
        parts += [
            f'<details{opened}><summary class="row">'
            f'<span class="mark {state}">{row.mark}</span>'
            f'<span class="id">{_text(row.id)}</span><span class="title">{_text(row.title)}</span>'
            f"{_cell('value', row.value)}{_cell('gradient', row.gradient)}</summary>",
            '<div class="checks">',
            *_checks(row.records),
            "</div></details>",
        ]
    return [*parts, "</div>"]


def _cell(label: str, found: Tally) -> str:
    worst = f"{found.worst} / " if found.worst else ""
    shown = f"{found.mark} {worst}{found.executed}" if found.executed else "–"
    state = _CLASSES[found.mark]
    return f'<span class="number {state}" data-label="{label}">{_text(shown)}</span>'


def _checks(records: Sequence[Record]) -> list[str]:
    """Failures first and in full, the others a line for each case, the worst first."""
    parts = [_failure(worst, others) for worst, *others in failure_groups(records)]
    for status in ("expected", "passed"):
        cases: dict[str, list[Record]] = {}
        for record in records:
            if record.status == status:
                cases.setdefault(record.case, []).append(record)
        worst_of = {case: max(found, key=badness) for case, found in cases.items()}
        for case in sorted(cases, key=lambda c: badness(worst_of[c]), reverse=True):
            parts.append(_line(worst_of[case], len(cases[case]), status))
    idle = tally(records).not_claimed
    if idle:
        parts.append(f'<p class="faint">{count(idle, "check")} not claimed</p>')
    return parts


def _line(worst: Record, checks: int, state: str) -> str:
    score = "" if worst.score is None else number(worst.score)
    return (
        f'<div class="line {state}"><span class="id">{_text(worst.case)}</span>'
        f'{_bar(worst.score)}<span class="number">{_text(score)}</span>'
        f'<span class="number faint">{count(checks, "check")}</span></div>'
    )


def _failure(record: Record, others: Sequence[Record]) -> str:
    parts = [
        '<article class="failure"><p><b class="failed">FAIL</b> '
        f'<span class="id">{_text(record.check)}</span> '
        f'<span class="faint">{_text(record.dtype)}</span></p>'
    ]
    if was_compared(record):
        facts = {
            "got": f"{record.got:.9g}",
            "want": f"{record.want:.9g}",
            "tolerance": f"{record.tolerance:.2g}",
            "error in tolerances": number(record.score),
        }
        if record.worst_index:
            facts = {"worst at": str(list(record.worst_index)), **facts}
        pairs = "".join(
            f'<div><dt>{name}</dt><dd class="number">{_text(value)}</dd></div>'
            for name, value in facts.items()
        )
        parts.append(f'<div class="failed">{_bar(record.score)}</div><dl>{pairs}</dl>')
    else:
        parts.append(f"<p>{_text(record.message or 'no message')}</p>")
    for line in explanation(record):
        kind = "suspect" if line.startswith("→") else "finding"
        parts.append(f'<p class="{kind}">{_text(line)}</p>')
    if others:
        label = "Also" if record.suspected is None else "The same bug"
        named = ", ".join(f"{other.tensor} {number(other.score)}" for other in others)
        parts.append(f"<p>{label}: {_text(named)}</p>")
    parts.append(f"<p><code>{_text(repro(record))}</code></p></article>")
    return "".join(parts)


def _bar(score: float | None) -> str:
    """A bar that reaches the tick in the middle at a score of 1, the end at 10 to the fourth."""
    if score is None or not math.isfinite(score):
        share = 1.0
    elif score <= 0:
        share = 0.0
    else:
        share = min(1.0, max(0.0, (math.log10(score) + _DECADES) / (2 * _DECADES)))
    return f'<div class="bar" style="--w:{100 * share:.0f}%"><i></i></div>'


def _reasons(report: Report, status: str, title: str) -> list[str]:
    reasons = by_reason(report.records, status)
    if not reasons:
        return []
    items = [f"<li>{_reason(reason, records)}</li>" for reason, records in reasons.items()]
    return [f'<h2>{title}</h2><ul class="reasons">', *items, "</ul>"]


def _reason(reason: str, records: Iterable[Record]) -> str:
    records = list(records)
    cases = ", ".join(dict.fromkeys(record.case for record in records))
    return (
        f'{_text(reason)} <span class="faint">{count(len(records), "check")}:</span> '
        f'<span class="id faint">{_text(cases)}</span>'
    )


def _text(text: str) -> str:
    return escape(printable(text))
