"""What `siglip-train` does on several processes if one is slow, hangs, dies or is set up wrong."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from PIL import Image

import siglip_mpi
from launched import BIN, IN_TROUBLE, LAUNCHERS, TINY, run, start
from siglip_train.__main__ import main
from siglip_train.backends import find_communicator
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint
from siglip_train.group import PartingError, together
from siglip_train.loop import read_metrics
from sources_of_pairs import write_rows


def write_validation(folder, count, word="thing"):
    """As many different pictures with different captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (7 * number, 0, 255)).save(folder / f"{number}.png")
    rows = [{"file": f"{number}.png", "caption": f"{word} {number}"} for number in range(count)]
    write_rows(folder, "captions.csv", rows)
    return folder


def error_lines(errors):
    return [line for line in errors.splitlines() if line.startswith("siglip-train: error:")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_evaluation_and_a_report_may_take_longer_than_the_timeout(tmp_path, launcher):
    # An evaluation takes 2 s on two processes, and would take one 4 s; the report takes 4 s.
    flags = [str(write_validation(tmp_path / "val", 32)), "--steps", "2", "--timeout", "3"]
    flags += ["--eval-every", "1"]
    status, printed, errors = run(
        *(launcher, 2, "slow", *TINY, *flags, "--out", str(tmp_path / "run")),
        program=IN_TROUBLE,
    )
    assert status == 0, errors
    assert "validation, image to text" in printed
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_process_that_hangs_in_an_evaluation_is_named(tmp_path, launcher):
    flags = [str(write_validation(tmp_path / "val", 32)), "--steps", "1", "--timeout", "3"]
    status, _, errors = run(
        *(launcher, 2, "hang", *TINY, *flags, "--out", str(tmp_path / "run")), program=IN_TROUBLE
    )
    assert status != 0
    said = {"mpi": "rank 0 stopped: ", "torch": "siglip-train: error: "}[launcher]
    assert f"{said}rank 1 did nothing for 3 s; rank 0 waited for it in a sum" in errors
    assert "siglip_train/run.py" not in errors  # no traceback


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_when_the_writer_is_killed_as_it_writes_the_others_end_and_the_run_goes_on(
    tmp_path, launcher
):
    folder = tmp_path / "run"
    flags = ["--steps", "100000", "--timeout", "20", "--out", str(folder)]
    process = start(launcher, 2, "killed_writing", *TINY, *flags, program=IN_TROUBLE)
    process.communicate(timeout=60)
    assert process.returncode != 0
    (half,) = folder.glob("*step-00000004*")
    assert time.time() - half.stat().st_mtime < 30
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    assert metadata["step"] == 2
    assert run(launcher, 2, "--resume", str(folder), "--steps", "6")[0] == 0
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == [*range(1, 7)]


@pytest.mark.parametrize(
    ("at", "file", "reached", "saved"),
    [
        ("metrics", "metrics.jsonl", 3, 2),
        ("checkpoint", "step-00000004.safetensors", 4, 2),
        ("report", "curves.png", 6, 6),
    ],
)
@pytest.mark.parametrize("launcher", ["alone", "mpi"])
def test_a_full_disk_is_told_once_and_the_run_goes_on_when_there_is_room(
    tmp_path, launcher, at, file, reached, saved
):
    check_full_disk(tmp_path / "run", launcher, at, file, reached, saved)


def test_a_full_disk_is_told_once_under_torchrun(tmp_path):
    check_full_disk(tmp_path / "run", "torch", "checkpoint", "step-00000004.safetensors", 4, 2)


def check_full_disk(folder, launcher, at, file, reached, saved):
    flags = ["--out", str(folder), "--timeout", "20"]
    status, _, errors = run(launcher, 2, f"full_{at}", *TINY, *flags, program=IN_TROUBLE)
    assert status == 1
    (line,) = error_lines(errors)
    assert line.startswith(f"siglip-train: error: {folder / file} cannot be written: ")
    assert os.strerror(errno.EFBIG) in line
    assert "siglip_train/run.py" not in errors  # no traceback
    assert "MPI_Abort" not in errors
    assert not list(folder.glob("*.partial"))
    assert load_checkpoint(latest_checkpoint(folder))[1]["step"] == saved
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [*range(1, reached + 1)]
    assert main(["--resume", str(folder)]) == 0
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == [*range(1, 7)]
    assert (folder / "report.html").exists()


def test_data_that_one_process_cannot_read_in_mid_run_end_all(tmp_path):
    for rank in range(2):
        write_validation(tmp_path / str(rank) / "data", 9)
    for image in (tmp_path / "1" / "data").glob("*.png"):
        image.write_bytes(b"damaged")
    status, errors = run_each_in_its_folder(tmp_path, "--train", "data", "--strict")
    assert status == 1
    assert errors.count("siglip-train: error: sample ") == 1  # perhaps behind rank 0's progress bar
    assert "image cannot be decoded" in errors
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert "siglip_train/run.py" not in errors  # no traceback


@pytest.mark.parametrize(
    ("launcher", "flags", "wanted"),
    [
        ("mpi", ["--batch-size", "2"], "batch_size must be at least the number of devices, 3"),
        ("torch", ["--batch-size", "2"], "batch_size must be at least the number of devices, 3"),
        ("mpi", ["--out", "."], "must be new or empty"),
    ],
)
def test_a_mistake_that_all_make_is_told_once(tmp_path, monkeypatch, launcher, flags, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    status, _, errors = run(launcher, 3, *TINY, "--out", "run", *flags)
    assert status == 1
    (line,) = error_lines(errors)
    assert wanted in line
    assert "siglip_train/run.py" not in errors  # no traceback
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_mistake_of_one_process_ends_all_before_anything_is_written(tmp_path):
    write_validation(tmp_path / "0" / "val", 4)
    (tmp_path / "1").mkdir()
    status, errors = run_each_in_its_folder(tmp_path, "val")
    assert status == 1
    (line,) = error_lines(errors)
    assert "val" in line
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_processes_with_different_data_are_refused(tmp_path):
    for rank, word in enumerate(["cat", "dog"]):
        write_validation(tmp_path / str(rank) / "val", 4, word)
    status, errors = run_each_in_its_folder(tmp_path, "val")
    assert status == 1
    (line,) = error_lines(errors)
    assert "rank 1 has others than rank 0" in line
    assert not (tmp_path / "run").exists()


def run_each_in_its_folder(tmp_path, *flags):
    """Status and errors of two processes that find their data in the folders 0 and 1."""
    out = str(tmp_path / "run")
    train = " ".join([str(BIN / "siglip-train"), *TINY, *flags, "--out", out])
    process = subprocess.run(
        [*LAUNCHERS["mpi"](2), "sh", "-c", f"cd {tmp_path}/$PMI_RANK && {train}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("torch", "is started by torchrun"), ("mpi", "pip install siglip-ref[mpi]")],
)
def test_a_communicator_that_cannot_be_used_is_told_in_one_line(
    tmp_path, monkeypatch, capsys, name, wanted
):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delenv("RANK", raising=False)
    assert main([*TINY, "--communicator", name, "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"siglip-train: error: communicator {name} cannot be used here: ")
    assert wanted in line


def test_a_bug_in_a_communicator_is_no_mistake_of_the_user(monkeypatch):
    @contextmanager
    def world(timeout):
        raise KeyError("a bug")
        yield

    monkeypatch.setattr(siglip_mpi, "world", world)
    with pytest.raises(KeyError, match="a bug"), find_communicator("mpi", 1.0):
        pass


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyError("a bug")])
def test_all_part_at_a_mistake_of_one_and_none_at_a_bug(error):
    def program(mpi):
        with siglip_mpi.communicator(mpi, timeout=10) as comm:
            try:
                with together(comm):
                    if comm.rank == 1:
                        raise error
            except PartingError as parting:
                return parting.cause
        return "went on"

    if isinstance(error, ValueError):
        assert siglip_mpi.simulate(3, program) == [None, error, None]
    else:
        with pytest.raises(KeyError, match="a bug"):
            siglip_mpi.simulate(3, program)
