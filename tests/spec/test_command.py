"""`siglip-spec` as a user types it: what it prints, writes, and exits with."""

import json
import subprocess
import sys

import pytest

from backends import library
from siglip_spec import PROFILES, load_profile
from siglip_spec.__main__ import FAILED, MISTAKEN, PASSED, main
from siglip_spec.report import from_json

LOSS = """
import numpy as np

def sigmoid_loss(zimg, ztxt, t_prime, b):
    logits = np.exp(t_prime) * zimg @ ztxt.T + b
    labels = 2 * np.eye(len(zimg)) - 1
    return np.{reduction}(np.logaddexp(0, -labels * logits)){by}
"""

CRASHING = """
import os
from siglip_spec import Subject

print("a module may print what it likes")
subject = Subject("crashing 1.0", expected_failures={"loss.softmax/n1-d3/single": "acme#1"})

@subject.provides("softplus")
def softplus(x):
    os._exit(3)

@subject.provides("log_sigmoid")
def log_sigmoid(x):
    import numpy as np
    return -np.logaddexp(0, -x)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.py").write_text(LOSS.format(reduction="sum", by=" / len(zimg)"))
    (tmp_path / "wrong.py").write_text(LOSS.format(reduction="mean", by=""))
    return tmp_path


def test_a_right_numpy_loss_passes_and_is_told_what_it_does_not_claim(here, capsys):
    assert main(["verify", "right.py:sigmoid_loss"]) == PASSED
    printed = capsys.readouterr().out
    assert "+ 0 failed +" in printed
    assert "not claimed" in printed
    assert "conforms to" not in printed


def test_a_mean_over_pairs_is_told_its_bug_its_clause_and_how_to_see_it(here, capsys):
    assert main(["verify", "wrong.py:sigmoid_loss"]) == FAILED
    printed = capsys.readouterr().out
    assert "MeanOverPairs" in printed
    assert "LOSS-3" in printed
    assert "1/7 = 1/n" in printed
    assert "siglip-spec repro loss.sigmoid/n7-d5/init-bias" in printed


def test_only_the_first_failing_cases_are_shown_unless_all_are_asked_for(here, capsys):
    main(["verify", "wrong.py:sigmoid_loss"])
    short = capsys.readouterr().out
    main(["verify", "wrong.py:sigmoid_loss", "-v"])
    full = capsys.readouterr().out
    assert "more failing cases; -v shows all" in short
    assert short.count("FAIL  ") < full.count("FAIL  ")


def test_the_repro_script_needs_numpy_only(here, capsys):
    assert main(["repro", "loss.sigmoid/n7-d5/init-bias", "--suspected", "MeanOverPairs"]) == PASSED
    (here / "repro.py").write_text(capsys.readouterr().out)
    run = subprocess.run(
        [sys.executable, "-I", "repro.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "MeanOverPairs" in run.stdout


def test_reports_are_written_in_every_form(here):
    forms = ["--json", "r.json", "--html", "r.html", "--junit", "r.xml"]
    assert main(["verify", "wrong.py:sigmoid_loss", *forms]) == FAILED
    report = from_json(json.loads((here / "r.json").read_text()))
    assert report.counts()["failed"] > 0
    assert "<html" in (here / "r.html").read_text()
    assert "<testsuite" in (here / "r.xml").read_text()


def test_another_lambda_is_said_in_the_first_line(here, capsys):
    main(["verify", "right.py:sigmoid_loss", "--lambda", "1000"])
    assert "1000" in capsys.readouterr().out.splitlines()[0]


def test_a_torch_function_needs_no_gradient_of_its_own(here, capsys):
    library("torch")
    (here / "loss.py").write_text(
        "import torch.nn.functional as F\n\n"
        "def loss(zimg, ztxt, t_prime, b):\n"
        "    logits = t_prime.exp() * zimg @ ztxt.T + b\n"
        "    labels = 2 * logits.new_ones(len(logits)).diag() - 1\n"
        "    return -F.logsigmoid(labels * logits).sum() / len(logits)\n"
    )
    assert main(["verify", "loss.py:loss", "--json", "r.json"]) == PASSED
    records = from_json(json.loads((here / "r.json").read_text())).records
    assert any(r.tensor == "grad/dzimg" and r.status == "passed" for r in records)


def test_a_crash_costs_one_case_if_the_subject_is_isolated(here, capsys):
    (here / "crashing.py").write_text(CRASHING)
    arguments = ["verify", "crashing:subject", "--isolate", "--profile", "primitives"]
    assert main([*arguments, "--json", "r.json"]) == FAILED
    records = from_json(json.loads((here / "r.json").read_text())).records
    failed = {record.case for record in records if record.status == "failed"}
    assert failed == {"primitives.softplus/n5-d7/ordinary"}
    passed = {record.operation for record in records if record.status == "passed"}
    assert passed == {"log_sigmoid"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nothing.py:loss"], "there is no file 'nothing.py'"),
        (["verify", "right.py:loss"], "right.py has no 'loss'; it has np, sigmoid_loss"),
        (["verify", "right.py"], "write it as package.module:name or file.py:name"),
        (["verify", "right.py:np"], "must be a Subject or a function, got module"),
        (["verify", "right.py:sigmoid_loss", "--operation", "loss"], "operation must be one of"),
        (["verify", "right.py:sigmoid_loss", "--profile", "los"], "profile must be all or one of"),
        (["show", "loss.sigmoid"], "there is no case 'loss.sigmoid'"),
        (["repro", "loss.sigmoid"], "there is no case 'loss.sigmoid'"),
        (["exec", "./nothing-here"], "nothing-here"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_exits_with_2(here, capsys, arguments, message):
    assert main(arguments) == MISTAKEN
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_list_prints_every_case_once(capsys):
    assert main(["list"]) == PASSED
    ids = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert ids == [case.id for profile in PROFILES for case in load_profile(profile)]


@pytest.mark.parametrize("profile", PROFILES)
def test_show_prints_every_case(profile, capsys):
    for case in load_profile(profile):
        assert main(["show", case.id]) == PASSED
        printed = capsys.readouterr().out
        assert case.comment in printed
        assert all(clause in printed for clause in case.clauses)


def test_a_reader_that_has_enough_is_no_error(here):
    run = subprocess.run(
        f"{sys.executable} -m siglip_spec list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.startswith("loss.sigmoid/")
    assert run.stderr == ""


def test_gradcheck_exits_with_its_verdict(here, capsys):
    (here / "cube.py").write_text(
        "def cube(x):\n    return x**3\n\n"
        "def cube_bwd(x, dout):\n    return 3 * x**2 * dout\n\n"
        "def square(x, dout):\n    return 2 * x**2 * dout\n"
    )
    assert main(["gradcheck", "cube.py:cube", "--shape", "x=4,3"]) == PASSED
    arguments = ["gradcheck", "cube.py:cube", "--shape", "x=4,3", "--gradient", "cube.py:square"]
    assert main(arguments) == FAILED
    assert "factor 0.666667" in capsys.readouterr().out
