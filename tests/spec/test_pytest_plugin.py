"""The kit inside pytest: the decorator, and the run without a test file."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

import siglip_spec as spec
from made_up_subjects import MadeUp, off_by, truth

CONFORMANCE = """
import numpy as np
import siglip_spec as spec

subject = spec.Subject("acme 2.1", expected_failures={expected})

@subject.provides("softplus")
def softplus(x):
    return np.logaddexp(0, x){change}

@subject.provides("log_sigmoid")
def log_sigmoid(x):
    return -np.logaddexp(0, -x)

nothing = spec.Subject("nothing 0.1")
"""

DECORATED = """
import siglip_spec as spec
from conformance import subject

@spec.parametrize_with_checks(subject, profile="primitives")
def test_conformance(check):
    check()
"""


@pytest.fixture
def run(tmp_path):
    def pytest_with(*arguments, change="", expected="{}"):
        text = CONFORMANCE.replace("{change}", change).replace("{expected}", expected)
        (tmp_path / "conformance.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return pytest_with


SUBJECT = ("--siglip-subject=conformance:subject", "--siglip-profile=primitives")


def test_no_test_file_is_needed(run):
    result = run(*SUBJECT, "-v")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "siglip-spec 0.1, vectors 0.1.0 (sha256 " in result.stdout
    assert "subject acme 2.1, float32" in result.stdout
    assert "softplus/n5-d7/ordinary[out/out] PASSED" in result.stdout
    assert "= 2 passed + 0 failed + 0 expected +" in result.stdout


def test_a_failure_shows_what_the_kit_knows_and_fails_the_run(run):
    result = run(*SUBJECT, change=" / 4")
    assert result.returncode == 1
    assert "primitives.softplus/n5-d7/ordinary" in result.stdout
    assert "1/4" in result.stdout
    assert "1 failed" in result.stdout


def test_an_expected_failure_is_xfailed_with_its_reason(run):
    expected = "{'primitives.softplus/n5-d7/ordinary': 'acme#12'}"
    result = run(*SUBJECT, "-rx", change=" / 4", expected=expected)
    assert result.returncode == 0, result.stdout
    assert "acme#12" in result.stdout
    assert "1 xfailed" in result.stdout


def test_an_expected_failure_that_passes_fails_the_run(run):
    result = run(*SUBJECT, expected="{'primitives.softplus/n5-d7/ordinary': 'acme#12'}")
    assert result.returncode == 1
    assert "was expected to fail: acme#12" in result.stdout


def test_a_subject_that_claims_nothing_is_an_error(run):
    result = run("--siglip-subject=conformance:nothing", "--siglip-profile=loss")
    assert result.returncode not in (0, 5)
    assert "provides no operation of the profile" in result.stdout + result.stderr


def test_a_mistake_in_the_option_ends_the_run_at_once(run):
    result = run("--siglip-subject=conformance:subjekt")
    assert result.returncode == 4
    assert "conformance has no 'subjekt'" in result.stderr


def test_checks_are_spread_over_processes_and_counted_together(run):
    result = run(*SUBJECT, "-n", "2")
    assert result.returncode == 0, result.stdout
    assert "= 2 passed + 0 failed + 0 expected +" in result.stdout


def test_junit_has_the_clauses_and_scores(run, tmp_path):
    run(*SUBJECT, "--junitxml=report.xml", change=" / 4")
    cases = list(ET.parse(tmp_path / "report.xml").getroot().iter("testcase"))
    (failed,) = [case for case in cases if case.find("failure") is not None]
    properties = {item.get("name"): item.get("value") for item in failed.iter("property")}
    assert "LOSS-4" in properties["clauses"]
    assert float(properties["score"]) > 1


def test_a_decorated_test_runs_every_check(run, tmp_path):
    (tmp_path / "test_acme.py").write_text(DECORATED)
    result = run("test_acme.py", "-v", "-rs", change=" / 4")
    assert result.returncode == 1
    assert "test_conformance[primitives.softplus/n5-d7/ordinary[out/out]] FAILED" in result.stdout
    assert (
        "test_conformance[primitives.log_sigmoid/n5-d7/ordinary[out/out]] PASSED" in result.stdout
    )
    assert "not claimed: layer_norm is not provided" in result.stdout


def test_without_the_option_the_plugin_does_nothing(run, tmp_path):
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    assert True\n")
    result = run("test_plain.py")
    assert result.returncode == 0
    assert "SigLIP conformance" not in result.stdout
    assert "1 passed" in result.stdout


def test_the_plugin_alone_imports_nothing_heavy():
    program = (
        "import sys, siglip_spec.pytest_plugin\n"
        "print([m for m in ('siglip_ref', 'numpy', 'safetensors') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_decorator_runs_a_case_once_for_all_of_its_checks():
    subject = MadeUp(truth)
    mark = spec.parametrize_with_checks(subject, profile="loss")
    for parameter in mark.args[1]:
        parameter.values[0]()
    assert len(subject.asked) == len(set(subject.asked)) == len(spec.load_profile("loss"))


def test_the_decorators_checks_raise_what_is_wrong():
    mark = spec.parametrize_with_checks(MadeUp(off_by(2)), profile="loss")
    with pytest.raises(pytest.fail.Exception, match="tolerance"):
        mark.args[1][0].values[0]()
    with pytest.raises(ValueError, match="provides no operation"):
        spec.parametrize_with_checks(MadeUp(truth, operations=()))
