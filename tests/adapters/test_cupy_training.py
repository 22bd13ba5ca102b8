"""`siglip-train --backend cupy` over the stand-in for CuPy, in every precision."""

import numpy as np
import pytest

from run_folders import assert_close_params, final_params
from siglip_train.__main__ import main
from siglip_train.checkpoints import latest_checkpoint
from siglip_train.loop import read_metrics

pytest.importorskip("cupy")
from cupy_stand_in import namespace

TINY = [
    *("--steps", "2", "--batch-size", "4", "--width", "16", "--num-heads", "2"),
    *("--image-depth", "1", "--text-depth", "1", "--image-size", "16", "--microbatch", "2"),
    *("--checkpoint-every", "1", "--eval-every", "0", "--validation"),
]
# What overflows in a float16 step that is then left out, NumPy says.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid|divide):RuntimeWarning")


def run(folder, *flags):
    assert main([*TINY, "--out", str(folder), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "exact", "--precision", "float64")


@pytest.fixture(scope="module")
def launched():
    """CuPy is the stand-in; the names of all kernels that were launched."""
    with namespace.installed():
        yield namespace.RawModule.launched


def test_a_run_ends_with_the_parameters_of_numpy_and_resumes(exact, launched, tmp_path):
    folder = run(tmp_path / "run", "--precision", "float64", "--backend", "cupy")
    latest_checkpoint(folder).unlink()
    assert main(["--resume", str(folder)]) == 0
    assert_close_params(folder, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "kernel"),
    [("float32", "float"), ("float16", "Float16"), ("bfloat16", "BFloat16")],
)
def test_narrow_towers_learn_what_wide_ones_learn(exact, launched, tmp_path, precision, kernel):
    launched.clear()
    folder = run(tmp_path / "run", "--precision", precision, "--backend", "cupy")
    assert f"gelu_tanh_fwd<{kernel}>" in launched
    assert all(leaf.dtype != np.float64 for leaf in final_params(folder).values())
    records, wanted = (read_metrics(x / "metrics.jsonl") for x in (folder, exact))
    assert records[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=0.02)
    assert len(records) == 2
