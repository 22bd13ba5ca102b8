"""A report as text of at most 100 columns: each failure on its own, and the table of clauses."""

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from siglip_spec.report.overview import (
    ClauseRow,
    Tally,
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
    verdict,
    was_compared,
    was_empty,
)
from siglip_spec.runner import Record, Report

WIDTH = 100
_INDENT = " " * 6
_CELL = 16
_COLOURS = {"✓": "32", "✗": "31", "!": "33", "–": "2"}
_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "–": "-", "→": ">", "×": "x", "·": "*", "…": "~", "−": "-", "′": "'"}
    | {"λ": "lambda", "Σ": "sum", "σ": "sigma", "β": "beta", "η": "eta", "ε": "eps", "√": "sqrt "}
    | {
        "⟨": "<",
        "⟩": ">",
        "∘": "*",
        "‖": "|",
        "ᵀ": "^T",
        "ᵢ": "_i",
        "ⱼ": "_j",
        "₂": "_2",
        "²": "^2",
    }
)


@dataclass(frozen=True, slots=True)
class Style:
    """What the reader's terminal can show."""

    unicode: bool = True
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> "Style":
        """The style of a stream: colour only on a terminal, and not if NO_COLOR is set."""
        try:
            "✓✗–→×·…−′λΣᵀ".encode(getattr(stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            unicode = False
        else:
            unicode = True
        return cls(unicode, colour=stream.isatty() and not os.environ.get("NO_COLOR"))

    def text(self, text: str) -> str:
        """The text in one line and in letters that the terminal has."""
        line = printable(text)
        if self.unicode:
            return line
        return line.translate(_ASCII).encode("ascii", "backslashreplace").decode()

    def paint(self, text: str, code: str) -> str:
        """The text in a colour, if there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text


def failure_text(
    record: Record, others: Sequence[Record] = (), *, style: Style | None = None
) -> str:
    """A failing check in full: where, how far off, what the cause may be, how to see it.

    `others` are tensors of the same case that fail from the same cause; they share a line.
    `style` is that of the standard output unless given.
    """
    style = style or Style.of(sys.stdout)
    left = style.text(f"FAIL  {record.case}  {record.tensor}  {record.dtype}")
    plural = "" if len(record.clauses) == 1 else "s"
    right = style.text(f"clause{plural} {' '.join(record.clauses)}")
    if len(left) + len(right) + 3 <= WIDTH:
        lines = [f"{left}   {right}"]
    else:
        lines = [*_wrapped(left, ""), *_wrapped(right, _INDENT)]
    lines[0] = lines[0].replace("FAIL", style.paint("FAIL", "31"), 1)
    if was_compared(record):
        lines += _flowed([style.text(piece) for piece in _comparison(record)], "   ")
    else:
        lines += _wrapped(style.text(record.message or "no message"), _INDENT)
    for line in explanation(record):
        lines += _wrapped(style.text(line), _INDENT)
    if others:
        label = "also:" if record.suspected is None else "the same bug:"
        named = [f"{other.tensor} {number(other.score)}" for other in others]
        lines += _flowed([label, *(style.text(name) for name in named)], "  ")
    lines += _wrapped(style.text(f"repro: {repro(record)}"), _INDENT)
    return "\n".join(lines)


def failures_text(records: Iterable[Record], *, style: Style | None = None) -> str:
    """All failing checks, those of a case with the same cause as one; empty if there is none."""
    return "\n\n".join(
        failure_text(worst, others, style=style) for worst, *others in failure_groups(records)
    )


def summary_text(report: Report, verbose: bool = False, *, style: Style | None = None) -> str:
    """The table of clauses, suspected bugs, expected failures, counts and the verdict.

    `verbose` adds a line for every check and names the cases that are not claimed. `style` is that
    of the standard output unless given.
    """
    style = style or Style.of(sys.stdout)
    warning = experiment(report)
    lines = _wrapped(style.text(warning), "") if warning else []
    lines += _wrapped(style.text(heading(report)), "")
    if was_empty(report):
        loud = f"NOTHING WAS CHECKED: none of {count(report.planned, 'planned check')} was run."
        lines += ["", style.paint(loud, "31;1")]
    if verbose and report.records:
        lines += ["", *(line for record in report.records for line in _check(record, style))]
    rows = clause_rows(report)
    if rows:
        lines += ["", *_table(rows, style)]
    failed = report.counts()["failed"]
    for flag, matching in suspects(report):
        told = f"→ you match the known bug {flag} in {matching} of {count(failed, 'failing check')}"
        lines += ["", *_wrapped(style.text(told), "")]
    for title, status in (("expected failures", "expected"), ("not claimed", "not claimed")):
        reasons = by_reason(report.records, status)
        if reasons:
            lines += ["", f"{title}:"]
        for reason, records in reasons.items():
            listed = _listed(records, verbose or status == "expected")
            lines += _wrapped(style.text(f"{reason}: {listed}"), "  ")
    lines += ["", identity(report), f"clauses exercised {exercised(rows)} of {len(rows)}"]
    colour = "32" if report.statement() is not None else "33" if report.ok else "31"
    lines += [style.paint(line, colour) for line in _wrapped(style.text(verdict(report)), "")]
    return "\n".join(lines)


def _comparison(record: Record) -> list[str]:
    at = [f"worst at {list(record.worst_index)}"] if record.worst_index else []
    return [
        *at,
        f"got {record.got:.5g}",
        f"want {record.want:.5g}",
        f"|err| = {number(record.score)} × tolerance ({record.tolerance:.2g})",
    ]


def _table(rows: Sequence[ClauseRow], style: Style) -> list[str]:
    ids = max(len("clause"), *(len(style.text(row.id)) for row in rows))
    titles = WIDTH - ids - 2 * (_CELL + 2) - 2
    head = f"{'clause':{ids}}  {'worst error in tolerances, checks':>{titles}}"
    lines = [f"{head}  {'value':>{_CELL}}  {'gradient':>{_CELL}}"]
    for row in rows:
        title = _shortened(style.text(row.title), titles)
        cells = (_cell(row.value, style), _cell(row.gradient, style))
        line = f"{style.text(row.id):{ids}}  {title:{titles}}  {cells[0]}  {cells[1]}"
        lines.append(line.rstrip())
    legend = "✓ passes   ✗ fails   ! fails as expected   – not checked"
    return [*lines, style.text(legend)]


def _cell(tally: Tally, style: Style) -> str:
    checks = str(tally.executed) if tally.executed else ""
    text = f"{style.text(tally.mark)} {tally.worst:>8} {checks:>5}"
    return style.paint(f"{text:>{_CELL}}", _COLOURS[tally.mark])


def _check(record: Record, style: Style) -> list[str]:
    mark = {"passed": "✓", "failed": "✗", "expected": "!", "not claimed": "–"}[record.status]
    worst = "" if record.score is None else number(record.score)
    line = f"{style.text(mark)} {worst:>8}  {style.text(record.check)}"
    first, *rest = _wrapped(line, "", hanging=" " * 12)
    return [style.paint(first, _COLOURS[mark]), *rest]


def _listed(records: Sequence[Record], by_name: bool) -> str:
    """`12 checks` and, in brackets, the names of their cases or how many there are."""
    cases = list(dict.fromkeys(record.case for record in records))
    listed = ", ".join(cases) if by_name else count(len(cases), "case")
    return f"{count(len(records), 'check')} ({listed})"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3].rstrip()}..."


def _flowed(pieces: Sequence[str], gap: str) -> list[str]:
    """The pieces on as few lines as hold them; none is broken unless longer than a line."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + len(gap) + len(piece) <= WIDTH:
            lines[-1] += gap + piece
        else:
            lines += _wrapped(piece, _INDENT)
    return lines


def _wrapped(text: str, indent: str, *, hanging: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  " if hanging is None else hanging,
        break_on_hyphens=False,
    ) or [indent]
