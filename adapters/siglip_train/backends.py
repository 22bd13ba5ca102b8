"""The backends and the communicators that are installed, by name."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from typing import Any

from siglip_ref.backend import Backend
from siglip_ref.communicator import Communicator

BACKENDS = "siglip_ref.backends"
COMMUNICATORS = "siglip_ref.communicators"

_MARKS = {
    "mpi": ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"),
    "torch": ("TORCHELASTIC_RUN_ID",),
}
"""Environment variables that a launcher sets for the processes it starts."""


def find_backend(name: str) -> Backend:
    """The backend of this name.

    Raises ValueError if there is none, or if it cannot be loaded here, with the reason.
    """
    backend: Backend = _found("backend", BACKENDS, name)()
    return backend


@contextmanager
def find_communicator(
    name: str, timeout: float, environ: Mapping[str, str] = os.environ
) -> Iterator[Communicator | None]:
    """Inside, the group that this process is in; None if it is alone.

    `auto` stands for `mpi` under mpiexec, `torch` under torchrun, and else `none`.

    Raises ValueError if there is none of this name, or if it cannot be used here, with the reason.
    """
    if name == "auto":
        started_by = (known for known, marks in _MARKS.items() if any(m in environ for m in marks))
        name = next(started_by, "none")
    if name == "none":
        yield None
        return
    world = _found("communicator", COMMUNICATORS, name, "auto", "none")(timeout=timeout)
    with ExitStack() as stack:
        try:
            comm = stack.enter_context(world)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"communicator {name} cannot be used here: {error}") from error
        yield comm


def _found(kind: str, group: str, name: str, *more: str) -> Any:
    """What the entry point of a name makes, with every error of it turned into a ValueError."""
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted({*found, *more}))
        raise ValueError(f"{kind} must be one of {known}, got {name!r}")

    def make(**arguments: Any) -> Any:
        try:
            return found[name].load()(**arguments)
        except Exception as error:
            raise ValueError(f"{kind} {name} cannot be used here: {error}") from error

    return make
