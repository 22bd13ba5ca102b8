"""Measure everything and write docs/benchmarks.md.

    python tests/benchmarks/report.py [--only loss large ring training_step gradient_error]

Each section is measured by the programs in this folder, one after the other, and kept in
results.json as soon as it is there; the page is written from that file. `--only` measures some
sections and leaves the others as they are, and `--only` without any writes the page anew. All of
it takes more than an hour on two cores, and wants them for itself. `--quick` goes through all
programs with few pairs and rounds, and prints the page instead of keeping anything.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from page import PAGE, RESULTS, SECTIONS, Results, load, page

FOLDER = Path(__file__).parent

STEPS = [  # size, batch, rounds; backend, microbatch, remat
    (*towers, *ours)
    for towers, settings in {
        ("S", 16, 5): [
            ("numpy", 8, "nothing"),
            ("numpy", 2, "blocks"),
            ("torch", 0, "nothing"),
            ("torch", 2, "blocks"),
            ("jax", 0, "nothing"),
            ("jax", 0, "blocks"),
        ],
        ("S", 32, 3): [
            ("numpy", 8, "nothing"),
            ("numpy", 2, "blocks"),
            ("torch", 0, "nothing"),
            ("torch", 2, "blocks"),
            ("jax", 0, "nothing"),
            ("jax", 0, "blocks"),
        ],
        ("B", 16, 3): [("numpy", 8, "nothing"), ("torch", 0, "nothing"), ("jax", 0, "nothing")],
        # The peer's step under jit does not fit into 23 GB beside ours.
        ("B", 32, 2): [("numpy", 8, "nothing"), ("torch", 0, "nothing")],
    }.items()
    for ours in settings
]
PROGRAMS = {
    "loss": ["loss.py --sizes 1024 2048 4096 8192 16384 32768 65536 --rounds 5"],
    "large": ["loss.py --sizes --memory-sizes --once 131072"],
    "ring": ["ring.py --sizes 8192 --rounds 7"],
    "training_step": [
        f"training_step.py --backend {backend} --size {size} --batch {batch} "
        f"--microbatch {microbatch} --remat {remat} --rounds {rounds}"
        for size, batch, rounds, backend, microbatch, remat in STEPS
    ],
    "gradient_error": ["gradient_error.py"],
}
QUICK = {
    "loss": ["loss.py --sizes 1024 2048 --rounds 1 --memory-sizes 1024"],
    "large": ["loss.py --sizes --memory-sizes --once 2048"],
    "ring": ["ring.py --sizes 1024 --rounds 1"],
    "training_step": [
        f"training_step.py --backend {backend} --microbatch {microbatch} --remat {remat} "
        "--rounds 1 --size Ti --batch 4"
        for *_, backend, microbatch, remat in STEPS[:6]
    ],
    "gradient_error": ["gradient_error.py --depth 1 --batch 2"],
}
PACKAGES = {
    "NumPy": "numpy",
    "Torch": "torch",
    "JAX": "jax",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "mpi4py": "mpi4py",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="few pairs, and keep nothing")
    args = parser.parse_args()
    if args.only and os.getloadavg()[0] > 0.5:
        print(f"other programs run beside this: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    results = {} if args.quick else load()
    for name in args.only:
        results[name] = measured((QUICK if args.quick else PROGRAMS)[name])
        if not args.quick:
            keep(results)
    if args.quick:
        print(page(results))
    else:
        keep(results)


def keep(results: Results) -> None:
    """Store the results, and write the page from them."""
    ordered = {name: results[name] for name in SECTIONS if name in results}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(ordered))


def measured(programs: list[str]) -> dict[str, Any]:
    """What the programs of a section print, with the machine that they ran on.

    Where there are several, each gives a row.
    """
    answers = [answer(program) for program in programs]
    return {
        "machine": machine(),
        "commands": [f"python tests/benchmarks/{program}" for program in programs],
        **(answers[0] if len(answers) == 1 else {"rows": answers}),
    }


def answer(program: str) -> dict[str, Any]:
    """What a program prints with --json, on the last line."""
    print(f"{program} …", file=sys.stderr, flush=True)
    name, *arguments = shlex.split(program)
    command = [sys.executable, str(FOLDER / name), *arguments, "--json"]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """Cores, processor, and the versions of what is compared."""
    versions = {"Python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "cpu": processor(), "versions": versions}


def processor() -> str:
    """The name of the processor, with its widest vector instructions where Linux tells."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*: (.*)", told)
    flags = set(" ".join(re.findall(r"flags\s*: (.*)", told)[:1]).split())
    vectors = [label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    parts = [name.group(1).strip() if name else platform.machine(), *vectors[:1]]
    return ", ".join(parts)


if __name__ == "__main__":
    main()
