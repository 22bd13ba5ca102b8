"""`siglip-train`, and programs like it, on several processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

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
COMMANDS = {**LAUNCHERS, "alone": lambda _: []}
TRAIN = [str(BIN / "siglip-train")]
IN_TROUBLE = [sys.executable, str(Path(__file__).with_name("train_in_trouble.py"))]


def start(launcher, count, *flags, program=TRAIN):
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMANDS[launcher](count), *program, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )


def run(launcher, count, *flags, program=TRAIN):
    process = start(launcher, count, *flags, program=program)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
