"""Ranks of a group as threads of one process, with mpi4py's method names.

    results = simulate(4, program)        # program(mpi) on every rank

A program that uses these methods runs unchanged with `mpi4py.MPI.COMM_WORLD`. A rank that raises,
or calls `Abort`, ends the others at their next communication.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Buffer = np.ndarray

POLL = 1e-4
"""Seconds between two looks at what has arrived."""


class AbortedError(RuntimeError):
    """Another rank failed or aborted the group."""


class Request:
    """A message on its way; mpi4py's `Request`."""

    def __init__(self, test: Callable[[], bool]) -> None:
        self._test, self._done = test, False

    def Test(self) -> bool:  # noqa: N802 - mpi4py's name
        """Whether it is done."""
        self._done = self._done or self._test()
        return self._done

    def Wait(self) -> bool:  # noqa: N802 - mpi4py's name
        """Return when it is done."""
        while not self.Test():
            time.sleep(POLL)
        return True


class Group:
    """What the ranks share: mailboxes, a barrier's count, and whether the group was aborted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.mail: dict[tuple[int, int, int], deque[Buffer]] = {}
        self.aborted: str | None = None


class SimulatedMPI:
    """One rank's view of the group; mpi4py's `Intracomm`."""

    def __init__(self, group: Group, rank: int) -> None:
        self._group, self._rank = group, rank
        self._collective = 0

    def Get_rank(self) -> int:  # noqa: N802 - mpi4py's name
        """The number of this rank."""
        return self._rank

    def Get_size(self) -> int:  # noqa: N802 - mpi4py's name
        """The number of ranks."""
        return self._group.size

    def Isend(self, buf: Buffer, dest: int, tag: int = 0) -> Request:  # noqa: N802
        """Begin to send; the buffer is copied at once."""
        self._check()
        with self._group.lock:
            box = self._group.mail.setdefault((self._rank, dest, tag), deque())
            box.append(np.array(buf, copy=True))
        return Request(lambda: True)

    def Irecv(self, buf: Buffer, source: int, tag: int = 0) -> Request:  # noqa: N802
        """Begin to receive into the buffer, which must have the size of the message."""

        def test() -> bool:
            self._check()
            with self._group.lock:
                box = self._group.mail.get((source, self._rank, tag))
                if not box:
                    return False
                message = box.popleft()
            if message.nbytes != buf.nbytes:
                raise ValueError(
                    f"rank {self._rank} expected {buf.nbytes} bytes from rank {source}, "
                    f"got {message.nbytes}"
                )
            buf.reshape(-1).view(np.uint8)[...] = message.reshape(-1).view(np.uint8)
            return True

        return Request(test)

    def Sendrecv(  # noqa: N802 - mpi4py's name
        self,
        sendbuf: Buffer,
        dest: int,
        sendtag: int = 0,
        recvbuf: Buffer | None = None,
        source: int = 0,
        recvtag: int = 0,
    ) -> None:
        """Send one buffer and receive another."""
        if recvbuf is None:
            raise ValueError("recvbuf must be an array to receive into, got None")
        request = self.Irecv(recvbuf, source, recvtag)
        self.Isend(sendbuf, dest, sendtag)
        request.Wait()

    def Allgather(self, sendbuf: Buffer, recvbuf: Buffer) -> None:  # noqa: N802
        """Every rank's buffer, one after the other, on all ranks."""
        self._collective += 1
        tag = -self._collective
        for rank in range(self._group.size):
            self.Isend(sendbuf, rank, tag)
        parts = recvbuf.reshape(self._group.size, -1)
        for rank in range(self._group.size):
            self.Irecv(parts[rank], rank, tag).Wait()

    def Allreduce(self, sendbuf: Buffer, recvbuf: Buffer) -> None:  # noqa: N802
        """The sum of all ranks' buffers, added up in their order, on all ranks."""
        parts = np.empty((self._group.size, *sendbuf.shape), dtype=sendbuf.dtype)
        self.Allgather(sendbuf, parts)
        recvbuf[...] = np.sum(parts, axis=0)

    def Barrier(self) -> None:  # noqa: N802 - mpi4py's name
        """Return when all ranks have come here."""
        self.Allgather(np.zeros(1), np.empty((self._group.size, 1)))

    def Abort(self, errorcode: int = 1) -> None:  # noqa: N802 - mpi4py's name
        """End all ranks."""
        self._group.aborted = f"rank {self._rank} aborted the group with code {errorcode}"
        self._check()

    def _check(self) -> None:
        if self._group.aborted is not None:
            raise AbortedError(self._group.aborted)


def simulate(world_size: int, program: Callable[[SimulatedMPI], T]) -> list[T]:
    """What `program(mpi)` returns on each of `world_size` ranks, run side by side.

    Raises ValueError unless there is at least one rank, and else the first error of a rank; the
    other ranks are ended by it.
    """
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    group = Group(world_size)
    results: list[Any] = [None for _ in range(world_size)]
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        try:
            results[rank] = program(SimulatedMPI(group, rank))
        except BaseException as error:
            with group.lock:
                errors.append((rank, error))
                if group.aborted is None:
                    group.aborted = f"rank {rank} failed: {type(error).__name__}: {error}"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for _, error in errors if not isinstance(error, AbortedError)]
    if errors:
        raise (causes or [error for _, error in errors])[0]
    return results
