"""The tests that need a device run when asked for, and then not as skips."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def pytest_run(*arguments):
    """pytest in a process of its own, which sees no device."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=TESTS.parent,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_asked_for_without_a_device_they_fail_with_the_reason():
    done = pytest_run(str(TESTS / "gpu"))
    assert done.returncode == 1
    assert "tests/gpu cannot run here: CuPy needs a CUDA device" in done.stdout
    assert "skipped" not in done.stdout


def test_among_all_tests_they_are_not_collected():
    others = (
        f"--ignore={path}" for path in TESTS.iterdir() if path.is_dir() and path.name != "gpu"
    )
    done = pytest_run("--collect-only", "-n0", *others, str(TESTS))
    assert done.returncode == 5, done.stdout
    assert "no tests collected" in done.stdout
