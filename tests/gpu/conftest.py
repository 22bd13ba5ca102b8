"""Tests that need a CUDA device: run by `pytest tests/gpu` alone, and then never skipped.

One process runs them, since they measure time and memory; the figures are printed at the end.
"""

from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIGURES = []


def asked_for(config):
    """Whether the command line names this folder, or something in it."""
    start = config.invocation_params.dir
    paths = (start / argument.partition("::")[0] for argument in config.args)
    return any(path.resolve().is_relative_to(HERE) for path in paths)


def pytest_ignore_collect(collection_path, config):
    """The other tests are for every machine; these are not among them."""
    return None if asked_for(config) else True


def pytest_xdist_auto_num_workers(config):
    """One process, on the one device."""
    return 0 if asked_for(config) else None


def pytest_collection(session):
    """Without a device nothing here can run, and that is a failure."""
    if not asked_for(session.config):
        return
    try:
        import siglip_cupy

        siglip_cupy.CupyBackend()
    except (ImportError, RuntimeError) as error:
        pytest.exit(
            f"tests/gpu cannot run here: {error} (tests/README.md says what a machine needs)",
            returncode=1,
        )


def pytest_terminal_summary(terminalreporter):
    """The device, and what was measured."""
    if not FIGURES:
        return
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    terminalreporter.section("figures")
    terminalreporter.write_line(
        f"{properties['name'].decode()}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, "
        f"CuPy {cupy.__version__}"
    )
    for line in FIGURES:
        terminalreporter.write_line(line)


@pytest.fixture
def figure():
    """Note something that was measured."""
    return FIGURES.append


@pytest.fixture(scope="session")
def adapter():
    import siglip_cupy

    return siglip_cupy


@pytest.fixture(scope="session")
def cupy_backend(adapter):
    return adapter.CupyBackend()


@pytest.fixture
def no_waits():
    """A device does not tell of a wait; test_speed.py asks when a call returns."""

    @contextmanager
    def not_watched(*, copies=False):
        yield

    return not_watched


@pytest.fixture(scope="session")
def seconds():
    """Median time on the device of a function without arguments."""
    import cupy

    def measure(function, repeat=7):
        function()
        times = []
        for _ in range(repeat):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, end) / 1000)
        return sorted(times)[repeat // 2]

    return measure


@pytest.fixture
def extra_memory():
    """Most bytes that the memory pool took from the device while a function ran."""
    import cupy

    def measure(function):
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        result = function()
        cupy.cuda.Device().synchronize()
        return pool.total_bytes() - before, result

    return measure
