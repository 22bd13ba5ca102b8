"""`siglip-train` on several processes ends with the parameters that one process ends with."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from backends import library
from launched import BIN, LAUNCHERS, TINY, run, start, wait_for
from run_folders import assert_close_params
from siglip_train.backends import find_communicator
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint, step_path
from siglip_train.loop import read_metrics


def assert_equal_to_rounding(one: Path, other: Path, rtol=2**-23, atol=2e-9) -> None:
    """Equal to a unit in the last place of float32, in which parameters are, and `atol`."""
    assert_close_params(other, one, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    command = [str(BIN / "siglip-train"), *TINY, "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.parametrize(
    ("launcher", "count"), [("mpi", 2), ("mpi", 3), ("mpi", 4), ("torch", 2), ("torch", 3)]
)
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


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_that_compute_with_torch_end_with_the_same_parameters(alone, tmp_path, launcher):
    library("torch")
    flags = ("--backend", "torch", "--out", str(tmp_path / "run"))
    status, printed, errors = run(launcher, 2, *TINY, *flags)
    assert status == 0, errors
    assert "on 2 devices" in printed
    assert_equal_to_rounding(alone, tmp_path / "run", rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_processes_whose_towers_jax_compiles_end_with_the_same_parameters(
    alone, tmp_path, monkeypatch
):
    library("jax")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    flags = ("--backend", "jax", "--microbatch", "0", "--out", str(tmp_path / "run"))
    status, _, errors = run("mpi", 2, *TINY, *flags)
    assert status == 0, errors
    assert_equal_to_rounding(alone, tmp_path / "run", rtol=1e-6, atol=1e-7)


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
    wait_for(step_path(folder, 4))
    victim = max(descendants(process.pid, named="siglip-train"))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    steps = str(metadata["step"] + 2)
    assert run(launcher, 2, "--resume", str(folder), "--steps", steps)[0] == 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher_stops_all_after_one_and_the_same_step(tmp_path, launcher):
    stop_with_a_signal(tmp_path / "run", launcher, signal.SIGINT, lambda process: process.pid)


def test_a_signal_to_one_process_stops_all_after_one_and_the_same_step(tmp_path):
    def one_of(process):
        return min(descendants(process.pid, named="siglip-train"))

    stop_with_a_signal(tmp_path / "run", "mpi", signal.SIGTERM, one_of)


def stop_with_a_signal(folder, launcher, number, whom):
    process = start(launcher, 2, *TINY, "--steps", "100000", "--out", str(folder))
    wait_for(step_path(folder, 2))
    os.kill(whom(process), number)
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


def test_without_a_launcher_a_process_is_alone():
    with find_communicator("auto", 60.0, environ={}) as comm:
        assert comm is None


def test_the_name_of_a_communicator_is_checked():
    wanted = r"communicator must be one of .*mpi.*none.*'pigeon'"
    with pytest.raises(ValueError, match=wanted), find_communicator("pigeon", 60.0):
        pass


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
