"""The group of processes that mpiexec started."""

from collections.abc import Iterator
from contextlib import contextmanager

from siglip_mpi.communicator import TIMEOUT, MpiCommunicator, communicator


@contextmanager
def world(timeout: float = TIMEOUT) -> Iterator[MpiCommunicator]:
    """The ring of all processes of `mpi4py.MPI.COMM_WORLD`.

    Raises RuntimeError if mpi4py, or the MPI library that it loads, is missing.
    """
    try:
        from mpi4py import MPI  # noqa: PLC0415  (an extra)
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"mpi4py and an MPI library are needed: pip install 'siglip-ref[mpi]' ({error})"
        ) from error
    with communicator(MPI.COMM_WORLD, timeout) as comm:
        yield comm
