"""Ranks of a group as threads of one process, with mpi4py's method names.

    results = simulate(4, program)        # program(mpi) on every rank

A program that uses these methods runs unchanged with `mpi4py.MPI.COMM_WORLD`. As there, a buffer is
the memory of an array, in the order in which it lies there: TypeError if it is no array, and
BufferError if it is in pieces, or is to be received into and read-only. A rank that raises, or
calls `Abort`, ends the others at their next communication.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Buffer = NDArray[Any]

ANY = -1
"""Any source, or any tag."""

_POLL = 1e-4
_GRACE = 3.0
_MESSAGE, _COLLECTIVE = 0, 1


class AbortedError(RuntimeError):
    """Another rank failed or aborted the group."""


class TruncatedError(RuntimeError):
    """A message is longer than the buffer that was to receive it."""


class RankError(RuntimeError):
    """A message is to or from a rank that there is not."""


class Request:
    """A message on its way; mpi4py's `Request`."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self.done = False
        self.error: TruncatedError | None = None

    def Test(self) -> bool:  # noqa: N802 - mpi4py's name
        """Whether it is done."""
        self._check()
        if self.error is not None:
            raise self.error
        return self.done

    def Wait(self) -> bool:  # noqa: N802 - mpi4py's name
        """Return when it is done."""
        while not self.Test():
            time.sleep(_POLL)
        return True


class Sent(NamedTuple):
    """A message that nobody has asked for yet."""

    source: int
    tag: int
    context: int
    data: NDArray[np.uint8]


class Posted(NamedTuple):
    """Memory that waits for a message."""

    source: int
    tag: int
    context: int
    memory: NDArray[np.uint8]
    request: Request

    def fits(self, sent: Sent) -> bool:
        """Whether this is where a message goes."""
        return (
            sent.context == self.context
            and self.source in (ANY, sent.source)
            and self.tag in (ANY, sent.tag)
        )

    def fill(self, data: NDArray[np.uint8]) -> None:
        """Receive the message; a shorter one fills the beginning."""
        if data.size > self.memory.size:
            self.request.error = TruncatedError(
                f"a message of {data.size} bytes does not fit into {self.memory.size}"
            )
        else:
            self.memory[: data.size] = data
            self.request.done = True


def memory_of(buf: Buffer, *, written: bool = False) -> NDArray[np.uint8]:
    """The bytes of an array as they lie in memory, of which they are a view."""
    if not isinstance(buf, np.ndarray):
        raise TypeError(f"a buffer must be an array, got {type(buf).__name__}")
    if not (buf.flags.c_contiguous or buf.flags.f_contiguous):
        raise BufferError(f"a buffer must lie in one piece, got strides {buf.strides}")
    if written and not buf.flags.writeable:
        raise BufferError("a buffer to receive into must be writeable, got a read-only array")
    return buf.ravel(order="K").view(np.uint8)


class Group:
    """What the ranks share: what was sent, what is waited for, and whether the group was aborted.

    Messages between two ranks arrive in the order in which they were sent, and receives are
    served in the order in which they were posted, as MPI promises.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.sent: list[list[Sent]] = [[] for _ in range(size)]
        self.posted: list[list[Posted]] = [[] for _ in range(size)]
        self.aborted: str | None = None


class SimulatedMPI:
    """One rank's view of the group; mpi4py's `Intracomm`."""

    def __init__(self, group: Group, rank: int) -> None:
        self._group, self._rank = group, rank

    def Get_rank(self) -> int:  # noqa: N802 - mpi4py's name
        """The number of this rank."""
        return self._rank

    def Get_size(self) -> int:  # noqa: N802 - mpi4py's name
        """The number of ranks."""
        return self._group.size

    def Isend(self, buf: Buffer, dest: int, tag: int = 0) -> Request:  # noqa: N802
        """Begin to send; the buffer is copied at once."""
        return self._send(buf, dest, tag, _MESSAGE)

    def Irecv(self, buf: Buffer, source: int = ANY, tag: int = ANY) -> Request:  # noqa: N802
        """Begin to receive into a buffer at least as long as the message."""
        return self._receive(buf, source, tag, _MESSAGE)

    def Iprobe(self, source: int = ANY, tag: int = ANY) -> bool:  # noqa: N802
        """Whether a message is there to be received."""
        self._check()
        nowhere = np.empty(0, dtype=np.uint8)
        wanted = Posted(source, tag, _MESSAGE, nowhere, Request(self._check))
        with self._group.lock:
            return any(wanted.fits(sent) for sent in self._group.sent[self._rank])

    def Sendrecv(  # noqa: N802 - mpi4py's name
        self,
        sendbuf: Buffer,
        dest: int,
        sendtag: int = 0,
        recvbuf: Buffer | None = None,
        source: int = ANY,
        recvtag: int = ANY,
    ) -> None:
        """Send one buffer and receive another."""
        if recvbuf is None:
            raise TypeError("recvbuf must be an array to receive into, got None")
        request = self.Irecv(recvbuf, source, recvtag)
        self.Isend(sendbuf, dest, sendtag)
        request.Wait()

    def Allgather(self, sendbuf: Buffer, recvbuf: Buffer) -> None:  # noqa: N802
        """Every rank's buffer, one after the other, on all ranks.

        Raises ValueError unless `recvbuf` has a number of elements that the ranks can share.
        """
        size = self._group.size
        if recvbuf.size % size:
            raise ValueError(
                f"recvbuf must have a multiple of {size} elements, one part for each rank, "
                f"got {recvbuf.size}"
            )
        parts = memory_of(recvbuf, written=True).reshape(size, -1)
        requests = [self._receive(parts[rank], rank, 0, _COLLECTIVE) for rank in range(size)]
        for rank in range(size):
            self._send(sendbuf, rank, 0, _COLLECTIVE)
        for request in requests:
            request.Wait()

    def Allreduce(self, sendbuf: Buffer, recvbuf: Buffer) -> None:  # noqa: N802
        """The sum of all ranks' buffers, added up in their order, on all ranks.

        Raises ValueError unless both have as many elements of one dtype.
        """
        if (sendbuf.size, sendbuf.dtype) != (recvbuf.size, recvbuf.dtype):
            raise ValueError(
                "sendbuf and recvbuf must have as many elements of one dtype, "
                f"got {sendbuf.size} of {sendbuf.dtype} and {recvbuf.size} of {recvbuf.dtype}"
            )
        into = memory_of(recvbuf, written=True).view(recvbuf.dtype)
        parts = np.empty((self._group.size, sendbuf.size), dtype=sendbuf.dtype)
        self.Allgather(sendbuf, parts)
        into[...] = np.sum(parts, axis=0, dtype=sendbuf.dtype)

    def Barrier(self) -> None:  # noqa: N802 - mpi4py's name
        """Return when all ranks have come here."""
        self.Allgather(np.zeros(1), np.empty((self._group.size, 1)))

    def Abort(self, errorcode: int = 1) -> None:  # noqa: N802 - mpi4py's name
        """End all ranks."""
        if self._group.aborted is None:
            self._group.aborted = f"rank {self._rank} aborted the group with code {errorcode}"
        self._check()

    def _send(self, buf: Buffer, dest: int, tag: int, context: int) -> Request:
        self._check()
        self._check_rank("dest", dest)
        sent = Sent(self._rank, tag, context, memory_of(buf).copy())
        with self._group.lock:
            posted = self._group.posted[dest]
            for number, receive in enumerate(posted):
                if receive.fits(sent):
                    posted.pop(number).fill(sent.data)
                    break
            else:
                self._group.sent[dest].append(sent)
        request = Request(self._check)
        request.done = True
        return request

    def _receive(self, buf: Buffer, source: int, tag: int, context: int) -> Request:
        self._check()
        if source != ANY:
            self._check_rank("source", source)
        request = Request(self._check)
        receive = Posted(source, tag, context, memory_of(buf, written=True), request)
        with self._group.lock:
            waiting = self._group.sent[self._rank]
            for number, sent in enumerate(waiting):
                if receive.fits(sent):
                    receive.fill(waiting.pop(number).data)
                    break
            else:
                self._group.posted[self._rank].append(receive)
        return request

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self._group.size:
            raise RankError(f"{name} must be a rank below {self._group.size}, got {rank}")

    def _check(self) -> None:
        if self._group.aborted is not None:
            raise AbortedError(self._group.aborted)


def simulate(world_size: int, program: Callable[[SimulatedMPI], T]) -> list[T]:
    """What `program(mpi)` returns on each of `world_size` ranks, run side by side.

    Raises ValueError unless there is at least one rank, and else the first error of a rank; the
    other ranks are ended by it at their next communication, and one that never comes there is
    left behind.
    """
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    group = Group(world_size)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = program(SimulatedMPI(group, rank))
        except BaseException as error:
            with group.lock:
                errors.append(error)
                if group.aborted is None:
                    group.aborted = f"rank {rank} failed: {type(error).__name__}: {error}"

    threads = [
        threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        time.sleep(_POLL)
    end = time.monotonic() + _GRACE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()) if errors else None)
    if errors:
        raise next((e for e in errors if not isinstance(e, AbortedError)), errors[0])
    return [results[rank] for rank in range(world_size)]
