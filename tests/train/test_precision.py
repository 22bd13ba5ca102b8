"""Runs in every precision, on every backend that a machine without an accelerator has."""

import json
from pathlib import Path

import numpy as np
import pytest

from backends import library
from run_folders import assert_close_params, final_params
from siglip_ref.precision import as_dtype
from siglip_train.__main__ import main
from siglip_train.backends import find_backend
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint
from siglip_train.loop import read_metrics

TINY = [
    *("--steps", "4", "--batch-size", "6", "--width", "16", "--num-heads", "2"),
    *("--image-depth", "1", "--text-depth", "1", "--image-size", "16", "--microbatch", "3"),
    *("--checkpoint-every", "2", "--eval-every", "0", "--validation"),
]
# What overflows in a float16 step that is then left out, NumPy says.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid|divide):RuntimeWarning")
BACKENDS = ["numpy", "torch", "jax"]


def run(folder: Path, *flags: str) -> int:
    return main([*TINY, "--out", str(folder), *flags])


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_a_dtype_for_a_precision_or_names_what_it_lacks(name, precision):
    library(name)
    library("ml_dtypes")  # which gives NumPy a bfloat16 that is none of its own
    backend = find_backend(name)
    if (name, precision) == ("numpy", "bfloat16"):
        with pytest.raises(ValueError, match="one that NumPy has, got 'bfloat16'"):
            backend.dtype(precision)
        return
    array = as_dtype(backend.asarray(np.ones(1, np.float32)), backend.dtype(precision))
    assert array.dtype == backend.dtype(precision)
    assert str(array.dtype).removeprefix("torch.") == precision


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("precision", ["float31", "nn"])
def test_a_dtype_that_no_library_has_is_refused_by_name(name, precision):
    library(name)
    with pytest.raises(ValueError, match=f"precision must be one that .* has, got '{precision}'"):
        find_backend(name).dtype(precision)


def test_float64_that_jax_has_turned_off_is_refused_with_what_to_do():
    jax = library("jax")
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"got 'float64': set JAX_ENABLE"):
        find_backend("jax").dtype("float64")


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "exact"
    assert run(folder, "--precision", "float64") == 0
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_ends_with_the_same_parameters_and_resumes(exact, tmp_path, backend):
    library(backend)
    folder = tmp_path / "run"
    assert run(folder, "--precision", "float64", "--backend", backend) == 0
    latest_checkpoint(folder).unlink()
    assert main(["--resume", str(folder)]) == 0
    assert_close_params(folder, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_narrow_towers_learn_what_wide_ones_learn(exact, tmp_path, capsys, backend, precision):
    library(backend)
    folder = tmp_path / "run"
    status = run(folder, "--precision", precision, "--backend", backend)
    if (backend, precision) == ("numpy", "bfloat16"):
        assert status == 1
        assert "precision must be one that" in capsys.readouterr().err
        return
    assert status == 0
    assert all(leaf.dtype != np.float64 for leaf in final_params(folder).values())
    records, wanted = (read_metrics(x / "metrics.jsonl") for x in (folder, exact))
    assert records[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=0.02)
    assert all(record["loss_scale"] > 1 for record in records if precision == "float16")


def test_a_float16_step_that_overflows_is_left_out_and_halves_the_scale(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "--precision", "float16", "--validation", "emoji") == 0
    records = read_metrics(folder / "metrics.jsonl")
    skipped = [record for record in records if record["skipped"]]
    assert skipped, "a scale of 65536 is too much for the first step"
    assert skipped[0]["gradient_norm"] is None
    assert records[1]["loss_scale"] == records[0]["loss_scale"] / 2
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (folder / "curves.png").exists()
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    last = records[-1]
    halved = last["loss_scale"] / (2 if last["skipped"] else 1)
    assert metadata["loss_scale"][0] == halved
