"""What the README shows of the kit is what a user sees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends import library

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(language, beginning):
    """The first code block of this language that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if text.startswith(beginning))


@pytest.mark.slow
def test_the_three_line_loss_is_told_what_the_readme_says(tmp_path):
    library("torch")
    (tmp_path / "loss.py").write_text(block("python", "import torch, torch.nn"))
    run = subprocess.run(
        [sys.executable, "-m", "siglip_spec", "verify", "loss.py:loss"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    command, *shown = block("console", "$ siglip-spec verify loss.py:loss").splitlines()
    assert command == "$ siglip-spec verify loss.py:loss"
    printed = run.stdout.splitlines()
    assert len(shown) > 5
    assert [line for line in shown if line != "…" and line not in printed] == []
