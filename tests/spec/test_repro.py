"""A repro script runs on NumPy alone, and agrees with the vectors."""

import ast
import contextlib
import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from siglip_spec import mutants
from siglip_spec.plain import comparison
from siglip_spec.repro import repro_script
from siglip_spec.score import PRECISIONS, score, tolerance
from siglip_spec.suites import PROFILES, load_case, load_profile

SIGMOID = "loss.sigmoid/n7-d5/init-bias"


def execute(script):
    """Status and output of a script in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        exec(compile(script, "repro.py", "exec"), {"__name__": "__main__"})
    return end.value.code, printed.getvalue()


def run_alone(script, tmp_path):
    """The finished process of a script in an interpreter without this project's paths."""
    path = tmp_path / "repro.py"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, "-I", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def gradients(case):
    return [name for name in case.scale if name.startswith("grad/")]


def accepted(profile):
    return [case for case in load_profile(profile) if case.rejected is None]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_of_every_case_agrees_with_its_outputs(profile):
    for case in accepted(profile):
        status, printed = execute(repro_script(case))
        assert status == 0, f"{case.id}\n{printed}"
        assert printed.startswith(case.id)
        assert printed.count(": agrees: ") == sum(name.startswith("out/") for name in case.scale)


@pytest.mark.parametrize("profile", PROFILES)
def test_differences_of_the_plain_function_agree_with_a_gradient_of_every_case(profile):
    for case in accepted(profile):
        for tensor in gradients(case)[:1] + gradients(case)[-1:]:
            status, printed = execute(repro_script(case, tensor))
            assert status == 0, f"{case.id}[{tensor}]\n{printed}"
            assert "by central differences" in printed


@pytest.mark.parametrize("tensor", ["grad/dzimg", "grad/dztxt", "grad/dt_prime", "grad/db"])
def test_differences_tell_every_gradient_of_the_loss_to_eight_digits(tensor):
    case = load_case("loss.sigmoid/n7-d3/mild")
    want = float(np.max(np.abs(case.expected[tensor])))
    _, printed = execute(repro_script(case, tensor))
    line = next(line for line in printed.splitlines() if "by central differences" in line)
    value = float(line.split(":")[1].split(",")[0])
    error = float(line.rsplit(maxsplit=1)[1])
    assert abs(value) == pytest.approx(want, abs=1e-8 * want)
    assert error < 1e-7 * want


def test_scripts_of_refused_cases_end_well_as_the_plain_functions_refuse_too():
    refused = [case for profile in PROFILES for case in load_profile(profile) if case.rejected]
    assert refused
    for case in refused:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(repro_script(case), {"__name__": "__main__"})
        assert "refused, as it must be" in printed.getvalue(), case.id


def test_a_function_that_accepts_what_must_be_refused_ends_with_status_1():
    case = load_case("loss.sigmoid/n7-d5/other-count")
    script = repro_script(case).replace("return sigmoid_loss(", "return list((")
    script = script.replace("ztxt, t_prime, b)\n\n\nprint", "ztxt, t_prime, b))\n\n\nprint")
    status, _ = execute(script)
    assert "NOT REFUSED" in status


@pytest.mark.parametrize(
    ("profile", "tensor"),
    [("loss", None), ("image", None), ("ring", "grad/dzimg/0"), ("model", "grad/dparams/t_prime")],
)
def test_a_script_runs_in_an_isolated_interpreter(profile, tensor, tmp_path):
    finished = run_alone(repro_script(accepted(profile)[0], tensor), tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""


@pytest.mark.parametrize("profile", PROFILES)
def test_a_script_imports_numpy_and_the_standard_library_only(profile):
    allowed = {"numpy", "base64", "copy", "typing", "collections.abc"}
    for node in ast.walk(ast.parse(repro_script(accepted(profile)[0]))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module in allowed


@pytest.mark.parametrize("profile", PROFILES)
def test_a_script_has_every_bit_of_the_inputs(profile):
    for case in accepted(profile)[:3]:
        body = repro_script(case).split("# --- the specification")[0]
        made = {"__name__": "inputs"}
        exec(body, made)
        assert_same_bits(made["inputs"], case.inputs)
        for name, value in made["want"].items():
            assert_same_bits(value, case.expected[name])


@pytest.mark.parametrize("special", [0.1, 1 / 3, 1e300, -0.0, np.nan, np.inf])
def test_an_array_of_many_numbers_is_packed_with_every_bit(special):
    rows = np.arange(2500.0).reshape(500, 5)
    rows[3, 2] = special
    tokens = np.arange(2100).reshape(7, 300) * 1000
    case = replace(load_case(SIGMOID), inputs={"zimg": rows, "tokens": tokens})
    made = {}
    script = repro_script(case)
    exec(script.split("# --- the specification")[0], made)
    assert "packed(" in script
    assert made["inputs"]["zimg"].tobytes() == rows.tobytes()
    assert made["inputs"]["tokens"].tobytes() == tokens.tobytes()


def assert_same_bits(made, wanted):
    if isinstance(wanted, dict):
        children = dict(enumerate(made)) if isinstance(made, list) else made
        assert {str(key) for key in children} == set(wanted)
        for key, child in children.items():
            assert_same_bits(child, wanted[str(key)])
        return
    assert made.shape == wanted.shape
    assert np.array_equal(made, wanted)


def test_a_script_has_only_the_functions_that_it_needs():
    script = repro_script(load_case(SIGMOID))
    assert "def softplus(" in script
    assert "def layer_norm(" not in script


@pytest.mark.parametrize("wrong", ["return 2 * sigmoid_loss", "return np.nan * sigmoid_loss"])
def test_a_wrong_function_of_the_user_ends_with_status_1(wrong):
    script = repro_script(load_case(SIGMOID)).replace(
        "return sigmoid_loss(zimg, ztxt, t_prime, b)\n\n\n# --- the comparison",
        f"{wrong}(zimg, ztxt, t_prime, b)\n\n\n# --- the comparison",
    )
    assert wrong in script
    status, printed = execute(script)
    assert status == 1
    assert "DISAGREES" in printed


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (-1.0, 1)])
def test_a_gradient_of_the_user_is_compared_whole(factor, status):
    script = repro_script(load_case(SIGMOID), "grad/dzimg").replace(
        "return None", f"return {factor} * want['grad/dzimg']"
    )
    assert execute(script)[0] == status


def test_a_suspected_bug_is_shown_where_it_shows_most():
    case = load_case(SIGMOID)
    answers = {mutant.flag: answer for mutant, answer in mutants.answers(case)}
    bug = answers["MeanOverPairs"].grad["dzimg"]
    tensors = (case.expected, case.scale, case.underflow)
    worst = score(bug, *(of["grad/dzimg"] for of in tensors), "float32")
    script = repro_script(case, "grad/dzimg", subject="acme 2.1", suspected="MeanOverPairs")
    status, printed = execute(script)
    assert status == 0
    assert "subject    acme 2.1" in printed
    assert f"grad/dzimg{list(worst.worst_index)}: want {worst.want:.17g}" in printed
    assert f"the known bug MeanOverPairs gives {worst.got:.17g} there" in printed


def test_the_element_to_show_can_be_chosen():
    case = load_case(SIGMOID)
    _, printed = execute(repro_script(case, "grad/dzimg", index=(3, 1)))
    assert f"grad/dzimg[3, 1]: want {case.expected['grad/dzimg'][3, 1]:.17g}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor": "grad/dlogits"}, "tensor must be one of out/loss"),
        ({"suspected": "NoSuchBug"}, "suspected must be a known bug of sigmoid_loss"),
        ({"tensor": "grad/dzimg", "index": (7, 0)}, "index must be within the shape"),
        ({"tensor": "grad/dzimg", "index": (1,)}, "index must be within the shape"),
    ],
)
def test_what_the_case_does_not_have_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        repro_script(load_case(SIGMOID), **arguments)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_tolerance_of_the_script_is_that_of_the_kit(dtype):
    case = load_case(SIGMOID)
    scale, underflow = case.scale["grad/dzimg"], case.underflow["grad/dzimg"]
    np.testing.assert_array_equal(
        comparison.allowed(scale, underflow, dtype), tolerance(scale, underflow, dtype)
    )
