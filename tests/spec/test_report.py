"""The text of a report says what happened, all of it, and nothing that did not."""

import io
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given

from made_up_reports import BUG, CASE, REPORTS, of_everything, passing, record, report, wrong
from siglip_spec.report import Style, failure_text, failures_text, summary_text

PLAIN = Style()


def summary(report, **options):
    return summary_text(report, style=PLAIN, **options)


# --- a failure ------------------------------------------------------------------------------------


def test_a_failure_says_where_how_far_off_why_and_how_to_see_it():
    found = wrong(findings=("all 35 elements differ by the factor 1/7",), suspected=BUG)
    assert failure_text(found, style=PLAIN).splitlines() == [
        f"FAIL  {CASE}  grad/dzimg  float32   clause LOSS-3",
        "      worst at [3, 1]   got -1.3021e-05   want -9.1147e-05   "
        "|err| = 7.1e+04 × tolerance (1.1e-09)",
        "      all 35 elements differ by the factor 1/7",
        "      → you match the known bug MeanOverPairs",
        f"      repro: siglip-spec repro {CASE}",
    ]


def test_what_is_known_of_the_bug_stands_beside_its_name():
    found = wrong(findings=(f"matches the known bug {BUG} to 0.2 tolerances: Σ/nm",), suspected=BUG)
    text = failure_text(found, style=PLAIN)
    assert "→ you match the known bug MeanOverPairs to 0.2 tolerances: Σ/nm" in text
    assert text.count(BUG) == 1


def test_tensors_of_a_case_with_the_same_bug_are_one_failure_led_by_the_worst():
    records = [wrong("grad/db", 3.0, suspected=BUG), wrong("grad/dzimg", 9.0, suspected=BUG)]
    text = failures_text(records, style=PLAIN)
    assert text.count("FAIL") == text.count("repro:") == 1
    assert f"FAIL  {CASE}  grad/dzimg" in text
    assert "the same bug:  grad/db 3.00" in text


@pytest.mark.parametrize(
    "other",
    [
        wrong("grad/db", suspected="BiasSign"),
        wrong("grad/db", suspected=BUG, case="loss.sigmoid/n3-d5/init-bias"),
        record("grad/db", "failed", score=math.inf, suspected=BUG, message="wrong shape"),
    ],
    ids=["another bug", "another case", "another shape"],
)
def test_failures_with_different_causes_stay_apart(other):
    assert failures_text([wrong(suspected=BUG), other], style=PLAIN).count("FAIL") == 2


def test_what_is_missing_from_a_case_is_one_failure():
    tensors = ("grad/dzimg", "grad/dztxt")
    records = [record(t, "failed", score=math.inf, message=f"{t} is missing") for t in tensors]
    text = failures_text(records, style=PLAIN)
    assert text.count("FAIL") == 1
    assert "also:  grad/dztxt inf" in text


@pytest.mark.parametrize("worst", [wrong("out/loss", math.nan), record("out/loss", "failed")])
def test_a_score_that_is_no_number_is_the_worst_of_its_failure(worst):
    numbers = [wrong("grad/db", 1e30), wrong("grad/dzimg", 2.0)]
    worst = replace(worst, got=math.nan, want=1.0, tolerance=1e-6)
    assert f"FAIL  {CASE}  out/loss" in failures_text([*numbers, worst], style=PLAIN)


def test_an_expected_failure_that_passes_fails_with_its_own_message():
    message = "passed, but 'loss.sigmoid/*' was expected to fail: acme#12"
    text = failure_text(replace(passing(), status="failed", message=message), style=PLAIN)
    assert message in text
    assert "want" not in text


def test_a_crash_is_told_in_its_own_words():
    text = failure_text(
        record("out/loss", "failed", message="raised ZeroDivisionError"), style=PLAIN
    )
    assert "raised ZeroDivisionError" in text
    assert "tolerance" not in text


def test_nothing_failed_means_no_text():
    assert failures_text([passing()], style=PLAIN) == ""


# --- the table ------------------------------------------------------------------------------------


def test_a_row_has_the_worst_score_and_the_number_of_values_and_of_gradients():
    lines = summary(of_everything()).splitlines()
    row = next(line for line in lines if line.startswith("LOSS-3"))
    assert re.search(r"✓ +0\.12 +2 +✗ +7\.1e\+04 +4$", row)


@pytest.mark.parametrize(
    ("records", "cells"),
    [
        ([passing("out/loss")], r"✓ +0\.12 +1 +–$"),
        ([wrong("out/loss", math.nan), passing("out/loss")], r"✗ +NaN +2 +–$"),
        ([wrong("out/loss", math.inf)], r"✗ +inf +1 +–$"),
        ([record("out/loss", "failed")], r"✗ +error +1 +–$"),
        ([record("grad/db", "expected", reason="r", score=9.0)], r"– +! +1$"),
        ([record("grad/db", "not claimed", reason="r")], r"– +–$"),
        ([record("out/loss", "failed"), passing("out/loss")], r"✗ +error +2 +–$"),
        ([record("rejected")], r"✓ +1 +–$"),
        ([wrong("out/loss", 1.0004)], r"✗ +1\.01 +1 +–$"),
    ],
)
def test_a_cell_tells_passed_failed_expected_and_not_checked_apart(records, cells):
    lines = summary(report(*records)).splitlines()
    assert re.search(cells, next(line for line in lines if line.startswith("LOSS-3")))


def test_clauses_come_in_the_order_of_the_spec_and_unknown_ones_last():
    records = [passing(clauses=(name,)) for name in ("XYZ-9", "GRAD-1", "LOSS-10", "LOSS-2")]
    lines = summary(report(*records)).splitlines()
    rows = [line.split()[0] for line in lines if re.match(r"[A-Z]+-\d+ ", line)]
    assert rows == ["LOSS-2", "LOSS-10", "GRAD-1", "XYZ-9"]


def test_only_checks_that_were_run_exercise_a_clause():
    records = [passing(), record(status="not claimed", clauses=("LOSS-7",), reason="r")]
    assert "clauses exercised 1 of 2" in summary(report(*records))


def test_the_summary_says_how_many_failures_match_a_known_bug():
    assert "you match the known bug MeanOverPairs in 3 of 3 failing checks" in summary(
        of_everything()
    )


def test_reasons_are_given_for_expected_failures_and_for_what_is_not_claimed():
    text = summary(of_everything())
    assert "no tiles, acme#12: 1 check (loss.tiled/n4)" in text
    assert "softmax_loss is not provided: 1 check (1 case)" in text
    assert "1 check (loss.softmax/n3)" in summary(of_everything(), verbose=True)


def test_verbose_names_every_check_and_otherwise_only_the_table_is_shown():
    everything = of_everything()
    checks = {found.check for found in everything.records}
    assert all(check in summary(everything, verbose=True) for check in checks)
    assert not any(check in summary(everything) for check in checks)


def test_the_first_line_identifies_the_run():
    first = summary(report(passing())).splitlines()[0]
    for fact in ("1.0", "1.0.0", "3f2c9a1be07d", "acme 2.1", "float32", "profile loss"):
        assert fact in first


def test_another_lambda_is_said_first_and_there_is_no_statement():
    lines = summary(report(passing(), lam=16.0)).splitlines()
    assert lines[0].startswith("λ = 16 instead of 8")
    assert lines[-1] == "No statement of conformance: λ is 16, not 8."


def test_the_last_words_are_the_statement_where_everything_passed():
    conforming = report(passing())
    assert " ".join(summary(conforming).split()).endswith(conforming.statement())


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([passing(), wrong()], "1 check failed"),
        ([passing(), record(status="not claimed", reason="r")], "1 check of 2 not claimed"),
        ([record(status="expected", reason="r")], "no check passed"),
        ([], "nothing was checked"),
    ],
)
def test_without_a_statement_the_last_line_says_why(records, why):
    assert summary(report(*records)).splitlines()[-1] == f"No statement of conformance: {why}."


@given(REPORTS)
def test_no_line_is_wider_than_a_hundred_columns(any_report):
    text = failures_text(any_report.records, style=PLAIN) + "\n" + summary(any_report, verbose=True)
    assert max(map(len, text.splitlines())) <= 100


def test_words_without_end_are_broken_and_names_are_not():
    text = failure_text(record(status="failed", message="x" * 250), style=PLAIN)
    assert max(map(len, text.splitlines())) == 100
    cases = [f"loss.sigmoid/n{n}-d5/init-bias" for n in range(3, 20)]
    text = summary(report(*(record(status="expected", reason="r", case=c) for c in cases)))
    assert all(case in text for case in cases)


# --- what the reader can show ---------------------------------------------------------------------


class Screen(io.StringIO):
    def __init__(self, encoding="utf-8", terminal=True):
        super().__init__()
        self._encoding, self._terminal = encoding, terminal

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return self._terminal


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_screen_without_unicode_gets_ascii(encoding):
    style = Style.of(Screen(encoding))
    assert not style.unicode
    everything = replace(of_everything(), subject="Ψ-net", lam=16.0)
    text = summary_text(everything, style=replace(style, colour=False))
    assert text.isascii()
    assert re.search(r"LOSS-3 .* \+ +0\.12 +2 +x +7\.1e\+04 +4", text)
    assert failures_text(everything.records, style=style).isascii()


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style.of(Screen()).colour
    assert not Style.of(Screen(terminal=False)).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style.of(Screen()).colour


def test_colour_changes_no_letter():
    coloured = summary_text(of_everything(), verbose=True, style=Style(colour=True))
    assert "\x1b[" in coloured
    assert (
        re.sub(r"\x1b\[[\d;]*m", "", coloured).split()
        == summary(of_everything(), verbose=True).split()
    )
