"""`siglip-train` on several processes ends with the parameters that one process ends with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from siglip_train.backends import find_communicator
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint, step_path
from siglip_train.loop import read_metrics

BIN = Path(sys.executable).parent
# In float64, since Adam turns the rounding errors of a gradient that is 0 into whole steps.
TINY = [
    *("--steps", "6", "--batch-size", "9", "--width", "16", "--num-heads", "2"),
    *("--image-depth", "1", "--text-depth", "1", "--image-size", "16", "--microbatch", "4"),
    *("--checkpoint-every", "2", "--eval-every", "0", "--precision", "float64", "--validation"),
]
LAUNCHERS = {
    "mpi": lambda count: [str(BIN / "mpiexec"), "-n", str(count)],
    "torch": lambda count: [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"),
        *("--nproc-per-node", str(count)),
    ],
}


def start(launcher, count, *flags):
    command = [*LAUNCHERS[launcher](count), str(BIN / "siglip-train"), *flags]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )


def run(launcher, count, *flags):
    process = start(launcher, count, *flags)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


def assert_equal_to_rounding(one: Path, other: Path) -> None:
    first, second = (
        sr.tree.flatten(load_checkpoint(latest_checkpoint(x))[0]) for x in (one, other)
    )
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_allclose(second[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    command = [str(BIN / "siglip-train"), *TINY, "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("count", [2, 3])
def test_processes_end_with_the_parameters_of_one(alone, tmp_path, launcher, count):
    status, printed, errors = run(launcher, count, *TINY, "--out", str(tmp_path / "run"))
    assert status == 0, errors
    assert f"on {count} devices" in printed
    assert_equal_to_rounding(alone, tmp_path / "run")
    losses = [
        [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
        for folder in (alone, tmp_path / "run")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-7)


def test_the_softmax_loss_is_shared_out_too(tmp_path):
    flags = [*TINY, "--loss", "softmax", "--steps", "3"]
    for count in (1, 3):
        status, _, errors = run("mpi", count, *flags, "--out", str(tmp_path / str(count)))
        assert status == 0, errors
    assert_equal_to_rounding(tmp_path / "1", tmp_path / "3")


@pytest.mark.slow
def test_processes_whose_towers_jax_compiles_end_with_the_same_parameters(
    alone, tmp_path, monkeypatch
):
    library("jax")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    flags = ("--backend", "jax", "--microbatch", "0", "--out", str(tmp_path / "run"))
    status, _, errors = run("mpi", 2, *TINY, *flags)
    assert status == 0, errors
    assert_equal_to_rounding(alone, tmp_path / "run")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, launcher):
    folder = tmp_path / "run"
    assert run(launcher, 3, *TINY, "--out", str(folder))[0] == 0
    step_path(folder, 6).unlink()
    status, _, errors = run(launcher, 2, "--resume", str(folder))
    assert status == 0, errors
    assert_equal_to_rounding(alone, folder)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_process_ends_the_others_and_the_last_checkpoint_is_whole(tmp_path, launcher):
    folder = tmp_path / "run"
    flags = ["--steps", "100000", "--timeout", "5"]
    process = start(launcher, 3, *TINY, *flags, "--out", str(folder))
    deadline = time.monotonic() + 60
    while not step_path(folder, 4).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    victim = max(descendants(process.pid, named="siglip-train"))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    steps = str(metadata["step"] + 2)
    assert run(launcher, 2, "--resume", str(folder), "--steps", steps)[0] == 0


def test_a_signal_to_the_launcher_stops_all_after_one_and_the_same_step(tmp_path):
    folder = tmp_path / "run"
    process = start("mpi", 2, *TINY, "--steps", "100000", "--out", str(folder))
    deadline = time.monotonic() + 60
    while not step_path(folder, 2).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(min(descendants(process.pid, named="siglip-train")), signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert "stopped after step" in printed, errors
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    assert metadata["step"] == read_metrics(folder / "metrics.jsonl")[-1]["step"]


def test_processes_with_different_settings_are_refused_before_anything_is_written(tmp_path):
    train = " ".join([str(BIN / "siglip-train"), *TINY[:-1], "--out", str(tmp_path / "run")])
    process = subprocess.run(
        [*LAUNCHERS["mpi"](3), "sh", "-c", train + " --seed $PMI_RANK"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode != 0
    assert "rank 1 has others than rank 0" in process.stderr
    assert not (tmp_path / "run").exists()


def test_more_processes_than_rows_are_refused(tmp_path):
    status, _, errors = run("mpi", 3, *TINY, "--batch-size", "2", "--out", str(tmp_path / "run"))
    assert status != 0
    assert "batch_size must be at least the number of devices, 3, got 2" in errors


def test_without_a_launcher_a_process_is_alone():
    with find_communicator("auto", 60.0, environ={}) as comm:
        assert comm is None


def test_the_name_of_a_communicator_is_checked():
    with pytest.raises(ValueError, match=r"communicator must be one of .*mpi.*none.*'pigeon'"):
        find_communicator("pigeon", 60.0)


def descendants(pid: int, named: str) -> list[int]:
    """Ids of the processes below one whose command line has a word in it."""
    found = []
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for number in map(int, child.read_text().split()):
            found += descendants(number, named)
            words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
            if any(word.endswith(named) for word in words) and "mpiexec" not in words[0]:
                found.append(number)
    return found
