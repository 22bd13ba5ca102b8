"""The clauses of the specification by their ids, from `clauses.toml`."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

Level = Literal["MUST", "SHOULD"]
CheckedBy = Literal["vectors", "property", "not testable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One checkable sentence of the specification.

    id
        `LOSS-3`, its name for ever.
    title
        The sentence, as it stands in the chapter.
    chapter
        File and anchor in `spec/`, `03-losses.md#loss-3`.
    functions
        What it governs in the reference, by dotted names.
    operations
        Operations of the kit with cases that exercise it.
    checked_by
        `vectors` if a case of the kit notices a violation, `property` if only a test of the
        repository does.
    reason
        Why it is not testable, if it is not.
    """

    id: str
    title: str
    level: Level
    chapter: str
    functions: tuple[str, ...]
    operations: tuple[str, ...]
    checked_by: CheckedBy
    reason: str | None = None


def _read() -> dict[str, Clause]:
    tables = tomllib.loads(files("siglip_spec").joinpath("clauses.toml").read_text("utf-8"))
    return {
        name: Clause(
            id=name,
            **table | {key: tuple(table[key]) for key in ("functions", "operations")},
        )
        for name, table in tables.items()
    }


CLAUSES: dict[str, Clause] = _read()
"""All clauses, by family and number."""
