"""The vectors: what the sources make, exact in every dtype, and tight enough to see known bugs."""

import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save

from siglip_ref.tree import flatten
from siglip_spec import PROFILES, SPEC_VERSION, VECTORS_VERSION, load_case, load_profile
from siglip_spec.cases import DEFINITIONS
from siglip_spec.cases.values import is_on_grid
from siglip_spec.clauses import CLAUSES
from siglip_spec.generate import (
    ADMITTED,
    VECTORS,
    DisagreementError,
    answered,
    differences,
    manifest_of,
    same,
    worst_score,
)
from siglip_spec.mutants import MUTANTS, TOO_COARSE, UNDETECTABLE
from siglip_spec.operations import OPERATIONS
from siglip_spec.scales import reference_answer
from siglip_spec.score import LAMBDA, PRECISIONS
from siglip_spec.suites import manifest

CASES = [case for profile in PROFILES for case in load_profile(profile)]
ANSWERED = [case for case in CASES if case.rejected is None]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sources_make_these_files():
    # In a process of its own: it starts others, and this one may have threads.
    run = subprocess.run(
        [sys.executable, "-m", "siglip_spec.generate", "--check"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "17 files are what the sources make" in run.stdout


def suite(**changed):
    """A file of vectors, with some tensors changed."""
    tensors = {
        "x/n1#in/x": np.asarray([1.0, 2.0]),
        "x/n1#cotangent/dout": np.asarray([0.5, 1.0]),
        "x/n1#out/out": np.asarray([1.0, 3.0]),
        "x/n1#grad/dx": np.asarray([1.0, 3.0]),
        "x/n1#scale/out/out": np.asarray([0.0, 9.0], np.float32),
        "x/n1#underflow/out/out": np.asarray([0.0, 9.0], np.float32),
        "x/n1#probe/half": np.asarray([-4.0, 1.0]),
    }
    return save(
        {key: changed.get(key.split("#")[1].split("/")[0], t) for key, t in tensors.items()}
    )


@pytest.mark.parametrize("group", ["in", "cotangent", "out", "grad"])
def test_questions_and_expected_values_are_the_same_to_the_last_bit(group):
    pair = suite(), suite(**{group: np.nextafter([1.0, 3.0], 9.0)})
    assert same("x.safetensors", pair[0], suite())
    assert not same("x.safetensors", *pair)


@pytest.mark.parametrize("group", ["scale", "underflow"])
def test_scales_of_another_processor_are_at_most_a_step_away(group):
    def scaled(*values):
        return suite(**{group: np.asarray(values, np.float32)})

    assert same("x.safetensors", scaled(0.0, 8.0), scaled(0.0, 9.0))
    assert not same("x.safetensors", scaled(0.0, 8.0), scaled(0.0, 10.0))
    assert not same("x.safetensors", scaled(0.0, 8.0), scaled(0.1, 8.0))


def test_probes_of_another_processor_differ_by_rounding_only():
    near, far = (suite(probe=np.asarray([-4.0, 1.0 + by])) for by in (3e-12, 5e-12))
    assert same("x.safetensors", suite(), near)
    assert not same("x.safetensors", suite(), far)


def test_other_shapes_dtypes_and_texts_are_not_the_same():
    assert not same("x.safetensors", suite(), suite(probe=np.asarray([-4.0])))
    assert not same("x.safetensors", suite(), suite(scale=np.asarray([0.0, 9.0])))
    assert not same("x.json", b"1", b"1.0")


def test_the_manifest_is_held_to_the_files_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr("siglip_spec.generate.VECTORS", tmp_path)
    made = {"x.safetensors": suite()}
    made["manifest.json"] = manifest_of(made, {})
    beside = {"x.safetensors": suite(scale=np.asarray([0.0, 8.0], np.float32))}
    for name, content in {**beside, "manifest.json": manifest_of(beside, {})}.items():
        (tmp_path / name).write_bytes(content)
    assert list(differences(made)) == []
    (tmp_path / "manifest.json").write_bytes(made["manifest.json"])
    assert list(differences(made)) == ["manifest.json would change"]


def test_a_file_that_would_change_is_missing_or_is_too_many_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("siglip_spec.generate.VECTORS", tmp_path)
    (tmp_path / "same.json").write_bytes(b"same")
    (tmp_path / "old.json").write_bytes(b"old")
    (tmp_path / "extra.json").write_bytes(b"extra")
    made = {"same.json": b"same", "old.json": b"new", "gone.json": b"gone"}
    assert list(differences(made)) == [
        "extra.json is not one of the vectors",
        "old.json would change",
        "gone.json is missing",
    ]


def test_the_manifest_has_the_hash_of_every_file():
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VECTORS.iterdir()
        if path.name != "manifest.json"
    }
    assert manifest()["files"] == found
    listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    assert manifest()["sha256"] == hashlib.sha256(listed.encode()).hexdigest()
    assert (manifest()["spec"], manifest()["vectors"]) == (SPEC_VERSION, VECTORS_VERSION)


def test_the_manifest_counts_what_is_there():
    assert manifest()["cases"] == dict(Counter(case.profile for case in CASES))
    checks = {p: sum(len(case.tensors) for case in load_profile(p)) for p in PROFILES}
    assert manifest()["checks"] == checks
    assert manifest()["clauses"] == dict(Counter(c for case in CASES for c in case.clauses))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_is_named_by_its_profile_and_tied_to_clauses_that_exist(case):
    assert re.fullmatch(r"[a-z_]+\.[a-z0-9_]+(/[a-z0-9x_.-]+)+", case.id)
    assert case.id.split(".")[0] == case.profile
    assert case.clauses
    assert set(case.clauses) <= set(CLAUSES)
    assert case.comment


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_inputs_and_cotangents_are_exact_in_every_dtype(case):
    arrays = [*flatten(case.inputs).values(), *case.cotangents.values()]
    assert all(is_on_grid(x) for x in arrays if np.issubdtype(x.dtype, np.floating))


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case.id)
def test_core_and_oracle_agree_on_every_expected_value(case):
    assert worst_score(case, reference_answer(case), "float64") < ADMITTED


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case.id)
def test_every_differentiable_input_has_its_gradient_checked(case):
    operation = OPERATIONS[case.operation]
    found = {name.split("/")[1] for name in case.scale if name.startswith("grad/")}
    assert found == {f"d{name}" for name in operation.differentiable}


@pytest.mark.parametrize("case", [c for c in CASES if c.rejected], ids=lambda case: case.id)
def test_the_core_refuses_what_must_be_refused(case):
    # A TypeError is that of the shape checks which the tests put around the core.
    with pytest.raises((ValueError, TypeError)):
        reference_answer(case)


def test_every_operation_has_a_case():
    assert {case.operation for case in CASES} == set(OPERATIONS)


def test_ids_are_unique():
    assert max(Counter(case.id for case in CASES).values()) == 1


def test_the_sizes_of_the_matrices_of_a_loss_are_distinct():
    for case in load_profile("loss"):
        if "zimg" in case.inputs and case.rejected is None:
            (n, d), m = case.inputs["zimg"].shape, len(case.inputs["ztxt"])
            assert d not in (n, m), case.id
            assert case.operation != "pairwise_sigmoid_loss" or n != m, case.id


def test_a_case_on_which_the_producers_differ_is_not_admitted(monkeypatch):
    case = next(iter(DEFINITIONS["loss"]()))
    monkeypatch.setattr(
        "siglip_spec.generate._oracle_values",
        lambda _: {
            name: array * (1 + 1e-14)
            for name, array in load_case(case.id).expected.items()
            if not name.startswith("probe/")
        },
    )
    with pytest.raises(DisagreementError, match="core and oracle differ by"):
        answered(case)


# --- known bugs -----------------------------------------------------------------------------------

KILLED = {
    dtype: {flag for case in CASES for flag in case.kills.get(dtype, ())} for dtype in PRECISIONS
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("flag", MUTANTS)
def test_every_known_bug_is_noticed_or_said_to_be_too_fine_for_the_dtype(flag, dtype):
    excused = dtype in TOO_COARSE.get(flag, {})
    assert (flag in KILLED[dtype]) is not excused


def test_the_lists_of_what_is_not_noticed_are_about_bugs_that_exist():
    assert set(TOO_COARSE) <= set(MUTANTS)
    known = {f"M{number:02}" for number in range(1, 68)}
    covered = {mutant.bug for mutant in MUTANTS.values()}
    assert covered | set(UNDETECTABLE) == known
    assert not covered & set(UNDETECTABLE)


def test_there_is_one_lambda_and_no_case_has_another():
    assert LAMBDA == 8
    assert not any("lam" in case.attrs for case in CASES)
