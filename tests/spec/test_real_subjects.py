"""Real implementations conform, and the published table says what is measured here."""

import pytest

from siglip_spec.report.matrix import markdown_table
from subjects.rows import ROWS
from subjects.table import COMMAND, DOCS, README, SUMMARY_DTYPE, cells, published

TESTS = [(row, profile) for row in ROWS for profile in row.profiles]
COMPILED_LONG = ("loss", "image", "model", "ring", "trajectory")


def is_slow(row, profile):
    return row.label == "open_clip-gloo" or ("JAX" in row.label and profile in COMPILED_LONG)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("row", "profile"),
    [
        pytest.param(
            row,
            profile,
            id=f"{row.label}-{profile}",
            marks=[pytest.mark.slow] if is_slow(row, profile) else [],
        )
        for row, profile in TESTS
    ],
)
def test_a_real_implementation_conforms_as_published(row, profile):
    for report in row.check(profile):
        failures = [r for r in report.records if r.status == "failed"]
        assert not failures, [f"{r.check}: {r.message} {r.findings}" for r in failures]
        assert report.counts()["passed"] + report.counts()["expected"]
        worst = max((r.score or 0.0) for r in report.records if r.status != "expected")
        assert worst < row.limit
        measured = cells(markdown_table([report]))
        found = {key: published(DOCS).get(key) for key in measured}
        assert found == measured, f"{DOCS.name} is out of date: run {COMMAND}"


def test_the_readme_has_the_rows_in_float32_of_the_whole_table():
    wanted = {key: cell for key, cell in published(DOCS).items() if key[1] == SUMMARY_DTYPE}
    assert wanted
    assert published(README) == wanted


def test_the_table_has_no_row_that_nobody_measures():
    names = {implementation for implementation, *_ in published(DOCS)}
    measured = {subject.name for row in ROWS for subject in row.make()}
    assert names == measured
