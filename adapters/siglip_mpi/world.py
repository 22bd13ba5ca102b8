"""The communicator of all processes that mpiexec has started."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from siglip_mpi.communicator import TIMEOUT, MpiCommunicator, communicator


@contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[MpiCommunicator]:
    """The communicator over `MPI.COMM_WORLD`.

        with siglip_mpi.world() as comm:      # mpiexec -n 4 python program.py

    Raises ImportError, saying what to install, without mpi4py or an MPI library.
    """
    with communicator(_comm_world(), timeout) as comm:
        yield comm


def _comm_world() -> Any:
    try:
        from mpi4py import MPI  # noqa: PLC0415 - starts MPI, and not everyone has it
    except (ImportError, RuntimeError) as error:  # RuntimeError: no library behind mpi4py
        raise ImportError(
            "a ring of MPI processes needs mpi4py and an MPI library: "
            f"pip install siglip-ref[mpi] brings both; got {type(error).__name__}: {error}"
        ) from error
    return MPI.COMM_WORLD
