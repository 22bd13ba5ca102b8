"""What may import what, and what importing costs."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "siglip_ref").rglob("*.py"))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

ids = pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))


def run_python(code, **environment):
    """What `code` prints, run by this Python with our sources on its path."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "adapters", "spec"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported(file):
    """The top-level names of the other packages a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_the_import_contracts_are_kept():
    code = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    printed = run_python(code)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in printed, printed


def test_there_are_contracts_for_the_core_its_layers_and_numpy():
    assert {contract["type"] for contract in CONTRACTS} >= {"forbidden", "layers"}
    assert any("numpy" in contract.get("forbidden_modules", []) for contract in CONTRACTS)


@ids
def test_the_core_imports_the_array_api_jaxtyping_and_the_standard_library(file):
    allowed = {"siglip_ref", "array_api_compat", "jaxtyping", *sys.stdlib_module_names}
    if file.name in ("backend.py", "params.py"):
        allowed.add("numpy")  # the NumPy backend, and the initial values
    assert imported(file) <= allowed


@ids
def test_the_core_touches_no_file_clock_or_hidden_generator(file):
    shell = {"os", "io", "pathlib", "shutil", "tempfile", "socket", "subprocess", "logging"}
    shell |= {"time", "datetime", "random", "secrets", "threading", "multiprocessing"}
    assert not imported(file) & shell
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval"}


def test_importing_the_core_pulls_in_no_other_array_library():
    code = """
import sys
import siglip_ref
print(sorted({"torch", "jax", "cupy", "mpi4py", "siglip_spec", "siglip_train"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_importing_the_core_takes_less_than_three_tenths_of_a_second(tmp_path):
    # Processor time, the least of five: what else the machine does is not counted. The first run
    # compiles into a folder of its own and is not counted either.
    code = """
import time
start = time.process_time()
import siglip_ref
print(time.process_time() - start)
"""
    options = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    seconds = [float(run_python(code, **options)) for _ in range(6)][1:]
    assert min(seconds) < 0.3, seconds
