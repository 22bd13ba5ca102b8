"""Subjects in C and JavaScript: the protocol needs no Python at the other end."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from protocol_cases import assert_all_passed, statuses
from siglip_spec.protocol.files import ResponseSubject, export_prompt, read_response
from siglip_spec.protocol.live import LiveSubject
from siglip_spec.suites import load_profile

RESPONDERS = Path(__file__).parent / "responders"
PATIENCE = 20.0
LANGUAGES = ("c", "js")
PRECISE = ("float32", "float64")
VECTORS = [case for name in ("loss", "primitives", "accuracy") for case in load_profile(name)]
OPERATIONS = {
    *("sigmoid_loss", "pairwise_sigmoid_loss", "softplus", "log_sigmoid", "gelu_tanh", "dense"),
    "l2_normalize",
}


def required(tool):
    path = shutil.which(tool)
    if path is None:
        missing = f"{tool} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def responders(tmp_path_factory):
    """Language to command; a compiler or interpreter that is missing is a visible skip."""

    def command(language):
        if language == "js":
            return [required("node"), str(RESPONDERS / "responder.js")]
        binary = tmp_path_factory.getbasetemp() / "responder"
        if not binary.exists():
            flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
            source = str(RESPONDERS / "responder.c")
            compiler = required("gcc")
            subprocess.run([compiler, *flags, "-o", binary, source, "-lm"], check=True)
        return [str(binary)]

    return command


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("language", LANGUAGES)
def test_another_language_passes_the_vectors_live(responders, language, dtype):
    with LiveSubject([*responders(language), dtype], PATIENCE) as subject:
        assert subject.dtype == dtype
        claimed = [case for case in VECTORS if subject.claims(case.operation)]
        assert {case.operation for case in claimed} == OPERATIONS
        assert_all_passed(statuses(subject, claimed))


@pytest.mark.parametrize("dtype", PRECISE)
def test_another_language_passes_the_vectors_in_files(responders, tmp_path, dtype):
    export_prompt(VECTORS, tmp_path, dtype)
    subprocess.run([*responders("js"), str(tmp_path)], check=True, timeout=PATIENCE)
    subject = ResponseSubject(read_response(tmp_path))
    claimed = [case for case in VECTORS if case.operation in OPERATIONS]
    assert_all_passed(statuses(subject, claimed))
    others = [case for case in VECTORS if case.operation not in OPERATIONS]
    found = statuses(subject, others)
    assert {status for status, _ in found.values()} == {"not claimed"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_language_passes_and_refuses_what_it_should(responders, language):
    with LiveSubject([*responders(language), "float64"], PATIENCE) as subject:
        assert_all_passed(statuses(subject))
