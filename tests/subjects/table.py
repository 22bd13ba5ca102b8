"""The table of conformance in the README and in docs/conformance.md, between two marks.

What must agree with a new measurement are the counts: scores differ from machine to machine.
"""

import os
import re
from pathlib import Path

from siglip_spec import Report
from siglip_spec.report.matrix import markdown_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "conformance.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- conformance:begin -->", "<!-- conformance:end -->"
SUMMARY_DTYPE = "float32"
COMMAND = "python tests/spec/conformance_table.py"

Cells = dict[tuple[str, str, str], str]
"""Counts by implementation, dtype and profile."""


def write(reports: list[Report]) -> None:
    """Put all of it into the docs, and the rows in float32 into the README."""
    _replace(DOCS, markdown_table(reports))
    _replace(README, summary([r for r in reports if r.dtype == SUMMARY_DTYPE]))


def summary(reports: list[Report]) -> str:
    """The table without the reasons of expected failures."""
    table = markdown_table(reports).split("\n\nExpected failures:")[0]
    lines = [
        " | ".join(_without_reasons(cell) for cell in line.split(" | "))
        for line in table.split("\n")
    ]
    return "\n".join(lines)


def published(path: Path) -> Cells:
    """The cells of the table in a file.

    Raises ValueError if the file has no such table.
    """
    return cells(_parts(path)[1])


def cells(table: str) -> Cells:
    """What a table says, but for the scores."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {
        (implementation, dtype, profile): _counts(cell)
        for implementation, dtype, *row in rows
        for profile, cell in zip(header[2:], row, strict=True)
        if cell != "–"
    }


def _counts(cell: str) -> str:
    return _without_reasons(re.sub(r" · [^,]+", "", cell))


def _without_reasons(cell: str) -> str:
    """The cell with one count of expected failures, whatever their reasons."""
    pattern = r", (\d+) expected failures?(?:<sup>\d+</sup>)?"
    expected = sum(int(number) for number in re.findall(pattern, cell))
    end = " |" if cell.endswith(" |") else ""
    text = re.sub(pattern, "", cell).removesuffix(" |")
    return f"{text}{f', {expected} expected to fail' if expected else ''}{end}"


def _replace(path: Path, table: str) -> None:
    before, _, after = _parts(path)
    temporary = path.with_suffix(".part")
    temporary.write_text(f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}")
    os.replace(temporary, path)


def _parts(path: Path) -> tuple[str, str, str]:
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path.name} must have one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    return before, table, after
