"""The kit itself: what it says of subjects whose answers are known to be right or wrong."""

import itertools

import pytest

from made_up_subjects import MadeUp, nan, off_by, truth, zeros
from siglip_spec import PROFILES, check_subject, load_profile
from siglip_spec.operations import OPERATIONS
from siglip_spec.score import PRECISIONS, tolerance

PLANNED = {
    profile: sum(len(case.tensors) for case in load_profile(profile)) for profile in PROFILES
}
REFUSALS = {
    profile: sum(case.rejected is not None for case in load_profile(profile))
    for profile in PROFILES
}


def vanishing_tensors(profile):
    """Checks whose true answer cannot be told from zero, such as a key bias's gradient."""
    return sum(
        bool((abs(case.expected[tensor]) <= allowed(case, tensor)).all())
        for case in load_profile(profile)
        if case.rejected is None
        for tensor in case.tensors
    )


def allowed(case, tensor, dtype="float32"):
    return tolerance(case.scale[tensor], case.underflow[tensor], dtype)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_truth_passes_everything_and_is_stated_to_conform(profile, dtype):
    report = check_subject(MadeUp(truth, dtype=dtype), profile)
    assert report.counts() == {
        "passed": PLANNED[profile],
        "failed": 0,
        "expected": 0,
        "not claimed": 0,
    }
    assert report.ok
    assert f"made up 1.0 conforms to the SigLIP spec 0.1, profile {profile}" in report.statement()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_half_a_tolerance_off_passes_and_two_tolerances_off_fail_everything(profile, dtype):
    assert check_subject(MadeUp(off_by(0.5, dtype), dtype=dtype), profile).ok
    report = check_subject(MadeUp(off_by(2, dtype), dtype=dtype), profile)
    # What must be exact, such as a frozen parameter, has no tolerance to be off by.
    exact = sum(
        not (case.scale[tensor].any() or case.underflow[tensor].any())
        for case in load_profile(profile)
        if case.rejected is None
        for tensor in case.tensors
    )
    assert report.counts()["failed"] == PLANNED[profile] - REFUSALS[profile] - exact
    assert not report.ok
    assert report.statement() is None


@pytest.mark.parametrize("profile", PROFILES)
def test_zeros_pass_only_where_the_truth_vanishes(profile):
    counts = check_subject(MadeUp(zeros), profile).counts()
    assert counts["passed"] == vanishing_tensors(profile) + REFUSALS[profile]
    assert counts["failed"] == PLANNED[profile] - counts["passed"]


@pytest.mark.parametrize("profile", PROFILES)
def test_nan_passes_nowhere(profile):
    counts = check_subject(MadeUp(nan), profile).counts()
    assert counts["passed"] == REFUSALS[profile]
    assert counts["failed"] == PLANNED[profile] - REFUSALS[profile]


def test_a_subject_that_claims_nothing_is_not_ok_although_nothing_failed():
    report = check_subject(MadeUp(truth, operations=()), "all")
    assert report.counts() == {
        "passed": 0,
        "failed": 0,
        "expected": 0,
        "not claimed": sum(PLANNED.values()),
    }
    assert not report.ok
    assert report.statement() is None
    with pytest.raises(AssertionError, match="nothing was checked"):
        report.raise_if_failed()


def test_half_of_the_operations_pass_but_are_no_conformance_to_the_profile():
    half = tuple(itertools.islice(OPERATIONS, 0, None, 2))
    report = check_subject(MadeUp(truth, operations=half), "primitives")
    counts = report.counts()
    claimed = sum(
        len(case.tensors) for case in load_profile("primitives") if case.operation in half
    )
    assert (counts["passed"], counts["not claimed"]) == (claimed, PLANNED["primitives"] - claimed)
    assert report.ok
    assert report.statement() is None


def test_values_without_gradients_leave_the_gradients_unclaimed():
    report = check_subject(MadeUp(truth, gradients=False), "loss")
    gradients = sum(
        tensor.startswith("grad/") for case in load_profile("loss") for tensor in case.tensors
    )
    assert report.counts()["not claimed"] == gradients
    assert report.ok


@pytest.mark.parametrize("values", [truth, zeros, nan, off_by(2)])
@pytest.mark.parametrize("operations", [(), ("sigmoid_loss",), tuple(OPERATIONS)])
def test_planned_is_always_the_sum_of_the_four_counts(values, operations):
    report = check_subject(MadeUp(values, operations=operations), ["loss", "accuracy"])
    assert sum(report.counts().values()) == report.planned == PLANNED["loss"] + PLANNED["accuracy"]


def test_accepting_what_must_be_refused_fails_exactly_these_checks():
    report = check_subject(MadeUp(truth, refuses=False), "all")
    failed = [record for record in report.records if record.status == "failed"]
    assert len(failed) == sum(REFUSALS.values()) > 0
    assert {record.tensor for record in failed} == {"rejected"}
    assert all("accepted inputs of a wrong shape" in record.message for record in failed)


def test_a_missing_tensor_fails_itself_only():
    def without_db(case):
        return {name: array for name, array in truth(case).items() if name != "grad/db"}

    report = check_subject(MadeUp(without_db), "loss")
    failed = {record.tensor for record in report.records if record.status == "failed"}
    assert failed == {"grad/db"}


def test_a_wrong_shape_fails_whatever_the_numbers():
    def flat(case):
        return {name: array.reshape(1, *array.shape) for name, array in truth(case).items()}

    report = check_subject(MadeUp(flat), "loss")
    assert report.counts()["passed"] == REFUSALS["loss"]
    assert any("has the shape (1,), wanted ()" in record.message for record in report.records)


def test_another_lambda_is_an_experiment_and_makes_no_statement():
    report = check_subject(MadeUp(off_by(2)), "loss", lam=32.0)
    assert report.ok
    assert report.statement() is None


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_tolerance_is_finite_and_positive_unless_the_truth_is_exact(dtype):
    for case in (case for profile in PROFILES for case in load_profile(profile)):
        for tensor in case.scale:
            limits = allowed(case, tensor, dtype)
            assert (limits >= 0).all()
            assert (limits < float("inf")).all()
            assert (limits[case.expected[tensor] != 0] > 0).all(), (case.id, tensor)
