"""A report as JSON, from which the other forms can be made again: `schema/report.schema.json`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from siglip_spec.runner import STATUSES, Record, Report

SCHEMA = "report/1"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

T = TypeVar("T")
Reader = Callable[[Any, str], T]


def to_json(report: Report) -> dict[str, Any]:
    """The report as a tree of JSON values, with its counts, its verdict and every record.

    Numbers that are not finite, which JSON does not have, are the strings `NaN`, `Infinity` and
    `-Infinity`.
    """
    return {
        "schema": SCHEMA,
        "subject": report.subject,
        "dtype": report.dtype,
        "profiles": list(report.profiles),
        "spec_version": report.spec_version,
        "vectors_version": report.vectors_version,
        "vectors_sha256": report.vectors_sha256,
        "lam": _encoded(report.lam),
        "planned": report.planned,
        "counts": dict(report.counts()),
        "ok": report.ok,
        "statement": report.statement(),
        "records": [
            {name: _encoded(value) for name, value in asdict(record).items()}
            for record in report.records
        ],
    }


def from_json(tree: Mapping[str, Any]) -> Report:
    """The report that `to_json` gave this tree for.

    Raises ValueError if the tree is no report of this schema, or if its counts are not those of
    its records.
    """
    schema = tree.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA!r}, got {schema!r}")
    records = _list_of(_record)(_field(tree, "records"), "records")
    values = {name: read(_field(tree, name), name) for name, read in _REPORT.items()}
    report = Report(**values, records=records)
    for name, wanted in (("planned", report.planned), ("counts", report.counts())):
        if _field(tree, name) != wanted:
            raise ValueError(f"{name} must be {wanted}, as in the records, got {tree[name]}")
    return report


def _record(tree: Any, where: str) -> Record:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} must be an object, got {tree!r}")
    unknown = tree.keys() - {field.name for field in fields(Record)}
    if unknown:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    values = {
        name: read(_field(tree, name, where), f"{where}.{name}") for name, read in _RECORD.items()
    }
    return Record(**values)


def _field(tree: Mapping[str, Any], name: str, where: str = "the report") -> Any:
    if name not in tree:
        raise ValueError(f"{where} has no field {name!r}")
    return tree[name]


def _encoded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    # Subclasses such as NumPy's float64 become what they are.
    return float(value) if isinstance(value, float) else value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, got {value!r}")
    return value


def _status(value: Any, where: str) -> str:
    if value not in STATUSES:
        raise ValueError(f"{where} must be one of {', '.join(STATUSES)}, got {value!r}")
    return str(value)


def _float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number, got {value!r}")
    return float(value)


def _int(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where} must be an integer, got {value!r}")
    return value


def _optional(read: Reader[T]) -> Reader[T | None]:
    return lambda value, where: None if value is None else read(value, where)


def _list_of(read: Reader[T]) -> Reader[tuple[T, ...]]:
    def read_list(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(value))

    return read_list


_REPORT: dict[str, Reader[Any]] = {
    "subject": _text,
    "dtype": _text,
    "profiles": _list_of(_text),
    "spec_version": _text,
    "vectors_version": _text,
    "vectors_sha256": _text,
    "lam": _float,
}

_RECORD: dict[str, Reader[Any]] = {
    "check": _text,
    "case": _text,
    "tensor": _text,
    "profile": _text,
    "operation": _text,
    "clauses": _list_of(_text),
    "dtype": _text,
    "status": _status,
    "score": _optional(_float),
    "worst_index": _optional(_list_of(_int)),
    "got": _optional(_float),
    "want": _optional(_float),
    "tolerance": _optional(_float),
    "message": _text,
    "findings": _list_of(_text),
    "suspected": _optional(_text),
    "reason": _optional(_text),
    "seconds": _float,
}
