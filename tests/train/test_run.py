"""The command `siglip-train`, run for a few steps as a user would run it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from run_folders import final_params
from siglip_train.__main__ import main
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint, step_path
from siglip_train.loop import MetricsFile, read_metrics

TINY = [
    *("--steps", "6", "--batch-size", "8", "--width", "16", "--num-heads", "2"),
    *("--image-depth", "1", "--text-depth", "1", "--image-size", "16", "--microbatch", "4"),
    *("--checkpoint-every", "2", "--eval-every", "0", "--validation"),
]


def run_tiny(folder: Path, *flags: str) -> int:
    return main([*TINY, "--out", str(folder), *flags])


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = final_params(one), final_params(other)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path, strict=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run_tiny(folder, "--validation", "emoji") == 0
    return folder


def test_a_run_leaves_settings_metrics_checkpoints_and_pictures(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.toml", "metrics.jsonl", "report.html"} <= names
    assert {"curves.png", "retrieval.png", "similarity.png"} <= names
    assert {"step-00000004.safetensors", "step-00000006.safetensors"} <= names
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0]["t"] == pytest.approx(10)
    assert records[0]["b"] == pytest.approx(-np.log(7))
    assert "eval" in records[-1]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(finished, tmp_path):
    run_tiny(tmp_path / "again", "--workers", "3")
    assert_same_bits(finished, tmp_path / "again")
    run_tiny(tmp_path / "other", "--seed", "1")
    assert not np.array_equal(
        final_params(finished)["params/img/pos_embedding"],
        final_params(tmp_path / "other")["params/img/pos_embedding"],
    )


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, optimizer):
    flags = ["--optimizer", optimizer, "--ema", "0.5"]
    run_tiny(tmp_path / "whole", *flags)
    run_tiny(tmp_path / "cut", *flags)
    (tmp_path / "cut" / "step-00000006.safetensors").unlink()
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert [record["loss"] for record in whole] == [record["loss"] for record in cut]


def test_a_resumed_run_can_be_given_more_steps(tmp_path):
    run_tiny(tmp_path / "run")
    assert main(["--resume", str(tmp_path / "run"), "--steps", "9"]) == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 9
    assert "steps = 9" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_so_and_the_run_goes_on_later(tmp_path, number):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "siglip_train", *TINY, "--steps", "100000"]
    process = subprocess.Popen(
        [*command, "--out", str(folder)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / "step-00000002.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step" in errors
    assert f"--resume {folder}" in printed
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    assert metadata["step"] == read_metrics(folder / "metrics.jsonl")[-1]["step"]


def test_a_killed_process_loses_only_the_steps_since_its_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "siglip_train", *TINY, "--steps", "100000"]
    process = subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "step-00000004.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait(timeout=60)
    reached = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    _, metadata = load_checkpoint(latest_checkpoint(folder))
    assert reached - 3 <= metadata["step"] <= reached
    assert main(["--resume", str(folder), "--steps", str(metadata["step"] + 2)]) == 0


@pytest.mark.filterwarnings("ignore:(overflow|invalid|divide):RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run_tiny(folder, "--learning-rate", "1e30", "--warmup", "2", "--clip-norm", "0") == 1
    message = capsys.readouterr().err
    assert "the loss is" in message
    assert "learning_rate" in message
    if any(folder.glob("step-*.safetensors")):
        assert all(np.isfinite(leaf).all() for leaf in final_params(folder).values())


def test_the_softmax_loss_leaves_b_where_it_was_and_has_no_boundary_to_show(tmp_path):
    assert run_tiny(tmp_path / "run", "--loss", "softmax", "--validation", "emoji") == 0
    assert (tmp_path / "run" / "retrieval.png").exists()
    assert not (tmp_path / "run" / "similarity.png").exists()
    assert float(final_params(tmp_path / "run")["params/b"]) == pytest.approx(-np.log(7))


def test_a_frozen_tower_keeps_every_bit(tmp_path):
    run_tiny(tmp_path, "--freeze", "img/", "--weight-decay", "0.1", "--keep", "9")
    start, _ = load_checkpoint(step_path(tmp_path, 0))
    end, _ = load_checkpoint(step_path(tmp_path, 6))
    before, after = sr.tree.flatten(start["params"]), sr.tree.flatten(end["params"])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not {path for path in changed if path.startswith("img/")}
    assert {path for path in before if path.startswith("txt/") and path.endswith("/kernel")} <= (
        changed
    )


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--resume", "absent"], "absent"),
        (["--config", "absent.toml"], "absent.toml"),
        (["--backend", "abacus"], "backend must be one of"),
        (["--communicator", "pigeon"], "communicator must be one of"),
        (["--precision", "bfloat16"], "bfloat16"),
        (["--train", "absent"], "absent"),
        (["--tokenizer", "absent.model"], "absent.model"),
        (["--batch-size", "100000"], "batch_size"),
        (["--init-from", "absent.safetensors"], "absent.safetensors"),
        (["--resume", "x", "--out", "y"], "neither"),
    ],
)
def test_a_mistake_ends_at_once_with_one_line_that_names_it(
    tmp_path, monkeypatch, capsys, flags, wanted
):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("siglip-train: error:")
    assert wanted in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_not_written_into(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run_tiny(tmp_path) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_metrics_beyond_the_resumed_step_and_a_half_written_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"step": 4, "lo']))
    MetricsFile(path, 2).write({"step": 3, "loss": 1.0})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]
