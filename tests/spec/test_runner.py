"""What a run makes of expected failures, errors and time-outs."""

import time

import numpy as np
import pytest

from made_up_subjects import MadeUp, off_by, truth
from siglip_spec import Subject, check_subject, load_case, load_profile
from siglip_spec.runner import matches, run_case
from siglip_spec.subject import SubjectError

CASE = "loss.sigmoid/n7-d5/init-bias"
CHECKS = len(load_case(CASE).tensors)


def wrong_in(*ids):
    def values(case):
        return (off_by(5) if case.id in ids else truth)(case)

    return values


def test_an_expected_failure_is_run_counted_and_keeps_the_report_ok():
    subject = MadeUp(wrong_in(CASE), expected_failures={CASE: "acme#12"})
    report = check_subject(subject, "loss")
    assert CASE in subject.asked
    assert report.counts()["expected"] == CHECKS
    assert report.ok
    assert report.statement().endswith(f"{CHECKS} expected failures.")
    assert {r.reason for r in report.records if r.status == "expected"} == {"acme#12"}


def test_an_expected_failure_that_passes_is_a_failure():
    report = check_subject(MadeUp(truth, expected_failures={CASE: "acme#12"}), "loss")
    failed = [record for record in report.records if record.status == "failed"]
    assert len(failed) == CHECKS
    assert all("was expected to fail: acme#12" in record.message for record in failed)


def test_an_expectation_of_a_case_is_met_by_one_failing_check_of_it():
    def wrong_db(case):
        values = truth(case)
        return {**values, "grad/db": values["grad/db"] + 1} if case.id == CASE else values

    subject = MadeUp(wrong_db, expected_failures={CASE: "acme#12"})
    counts = check_subject(subject, "loss").counts()
    assert (counts["expected"], counts["failed"]) == (1, 0)


def test_an_expectation_of_a_check_does_not_cover_the_others_of_its_case():
    subject = MadeUp(wrong_in(CASE), expected_failures={f"{CASE}[grad/db]": "acme#12"})
    counts = check_subject(subject, "loss").counts()
    assert (counts["expected"], counts["failed"]) == (1, CHECKS - 1)


def test_a_star_stands_for_anything():
    assert matches("loss.sigmoid/*", CASE)
    assert matches("*[grad/db]", f"{CASE}[grad/db]")
    assert matches("loss.*/n7-d5/*[out/*]", f"{CASE}[out/loss]")
    assert matches("*", CASE)
    assert not matches("loss.softmax/*", CASE)
    assert not matches("loss.sigmoid", CASE)
    assert not matches("n7*n7", "n7")


def test_an_expected_failure_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'loss.sigmoid/n8' names no case and no check"):
        check_subject(MadeUp(truth, expected_failures={"loss.sigmoid/n8": "typo"}), "loss")


def test_an_expected_failure_without_a_reason_is_an_error():
    with pytest.raises(ValueError, match="needs a reason"):
        check_subject(MadeUp(truth, expected_failures={CASE: " "}), "loss")


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"one of loss, primitives, .* got 'losses'"):
        check_subject(MadeUp(truth), "losses")


@pytest.mark.parametrize(
    "error", [ValueError("no"), MemoryError(), SubjectError("it crashed"), TimeoutError("it hung")]
)
def test_an_error_costs_its_own_case_only(error):
    def values(case):
        if case.id == CASE:
            raise error
        return truth(case)

    subject = Subject("raises")

    @subject.provides("sigmoid_loss")
    def loss(zimg, ztxt, t_prime, b):
        if b == -10 and len(zimg) == 7:
            raise error
        raise NotImplementedError

    report = check_subject(subject, "loss")
    failed = {record.case for record in report.records if record.status == "failed"}
    assert failed == {CASE}


def test_a_hang_costs_its_own_case_only():
    subject = Subject("hangs")

    @subject.provides("softplus")
    def softplus(x):
        time.sleep(60)

    (record, _) = run_case(subject, load_case("primitives.softplus/n5-d7/ordinary"), timeout=0.2)
    assert record.status == "failed"
    assert "no answer within 0.2 s" in record.message


def test_what_is_not_implemented_is_not_claimed_with_the_subjects_own_words():
    subject = Subject("partly")

    @subject.provides("sigmoid_loss")
    def loss(zimg, ztxt, t_prime, b):
        raise NotImplementedError("needs 8 ranks")

    records = run_case(subject, load_case(CASE))
    assert {record.status for record in records} == {"not claimed"}
    assert {record.reason for record in records} == {"needs 8 ranks"}


def test_stopping_at_the_first_failure_runs_no_more_cases():
    subject = MadeUp(wrong_in(load_profile("loss")[0].id))
    check_subject(subject, "loss", stop_at_failure=True)
    assert len(subject.asked) == 1


def test_each_dtype_has_its_own_tolerance():
    case = load_case(CASE)

    def rounded(dtype):
        def values(case):
            return {name: np.asarray(x, dtype) for name, x in truth(case).items()}

        return values

    half = MadeUp(rounded(np.float16), dtype="float32")
    assert all(record.status == "failed" for record in run_case(half, case))
    honest = MadeUp(rounded(np.float16), dtype="float16")
    assert all(record.status == "passed" for record in run_case(honest, case))
