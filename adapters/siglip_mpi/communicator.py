"""The core's communicator over anything with mpi4py's methods: real MPI, or the simulated one."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from array_api_compat import array_namespace

from siglip_mpi.faults import Watch
from siglip_mpi.message import (
    HEADER,
    Header,
    Host,
    as_bytes,
    decode,
    dtype_name,
    room_for,
    to_home,
    to_host,
)
from siglip_mpi.simulated import AbortedError
from siglip_ref.communicator import Arrays
from siglip_ref.faults import COLLECTIVE, Notice, Reason, RingError, place
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""

_SMALL = 4096
_HEADER_TAG, _DATA_TAG = 1, 2


class MpiShift:
    """One hop of some arrays; `wait` gives those from the left."""

    def __init__(self, finish: Callable[[], Arrays]) -> None:
        self._finish = finish

    def wait(self) -> Arrays:
        """The arrays from the left neighbour."""
        return self._finish()


class MpiCommunicator:
    """A ring over mpi4py's point-to-point methods, which lets nobody wait for ever.

        with siglip_mpi.communicator(mpi) as comm:
            loss, grads = sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm)

    Every message has a header (hop, ring step, dtype, shape), which its receiver holds against
    what it expects. If a rank sends something else, sends a number that is not finite, or does not
    answer within `timeout` seconds, all ranks raise a RingError that names it and the ring step,
    at most a second later than the first of them notices. Left by an exception, the `with`
    block says so to the others, prints it and aborts the group: MPI would wait for ever at exit.

    Arrays go through the memory of the host; what arrives has the library, device and dtype of
    what was sent.

    watch
        How this rank hears of faults: for what waits for something else beside messages.
    """

    def __init__(self, mpi: Any, timeout: float = TIMEOUT) -> None:
        self._mpi = mpi
        self._rank, self._world_size = int(mpi.Get_rank()), int(mpi.Get_size())
        self.watch = Watch(mpi, timeout)
        self._hop, self._step = 0, 0

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return self._world_size

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> MpiShift:
        """Send arrays to the right and begin to receive as many, with `rows` rows, from the left.

        Raises RingError if a number is not finite.
        """
        if self.world_size == 1:
            return MpiShift(lambda: arrays)
        self._step = step
        for array in arrays:
            xp = array_namespace(array)
            if not bool(xp.all(xp.isfinite(array))):
                self.watch.stop(Notice(self.rank, (self.rank,), step, Reason.NOT_FINITE))
        finish = self._exchange(
            [(to_host(array), dtype_name(array)) for array in arrays],
            [(rows, *array.shape[1:]) for array in arrays],
            right=(self.rank + 1) % self.world_size,
            left=(self.rank - 1) % self.world_size,
            step=step,
        )
        return MpiShift(
            lambda: tuple(to_home(host, like) for host, like in zip(finish(), arrays, strict=True))
        )

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, to the last bit the same on each.

        A few numbers are gathered and added in the order of the ranks; of many, each rank adds up
        a part, and 2 (W - 1)/W of the array's size leaves it. 16-bit numbers are added in float32.
        """
        if self.world_size == 1:
            return array
        if dtype_name(array) in ("float16", "bfloat16"):
            return cast_like(self.sum(at_least_float32(array)), array)
        numbers = to_host(array)
        if numbers.size <= _SMALL:
            total = np.sum(self._everyone(numbers), axis=0, dtype=numbers.dtype)
        else:
            total = self._sum_in_parts(numbers.reshape(-1))
        return to_home(np.reshape(total, numbers.shape), array)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, in their order."""
        everyone = self._everyone(np.asarray(values, dtype=np.int64))
        return tuple(tuple(int(value) for value in row) for row in everyone)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others of an exception and end the group; mpiexec then ends every process."""
        if error is None:
            return
        report = f"rank {self.rank} stopped: {error}\n"
        if not isinstance(error, RingError):
            self.watch.tell(Notice(self.rank, (self.rank,), self._step, Reason.FAILED))
            report = "".join(traceback.format_exception(kind, error, trace)) + report
        self.watch.linger()  # mpiexec may end all ranks as soon as one of them says a word
        sys.stderr.write(report)
        sys.stderr.flush()
        with contextlib.suppress(AbortedError):  # which the simulated one raises
            self._mpi.Abort(1)

    def _exchange(
        self,
        sent: Sequence[tuple[Host, str]],
        shapes: Sequence[tuple[int, ...]],
        *,
        right: int,
        left: int,
        step: int,
    ) -> Callable[[], list[Host]]:
        """Begin to send arrays to one rank and to receive some with the same dtypes from another.

        All receives are posted at once, so that a message need not wait until it is waited for.
        """
        self.watch.check()
        hop, self._hop = self._hop, self._hop + 1
        headers = np.asarray(
            [Header(hop, step, dtype, host.shape).encode() for host, dtype in sent], dtype=np.int64
        )
        expected = [
            Header(hop, step, dtype, shape) for (_, dtype), shape in zip(sent, shapes, strict=True)
        ]
        coming = np.empty((len(sent), HEADER), dtype=np.int64)
        buffers = [room_for(header.shape, header.dtype) for header in expected]
        arrival = self._mpi.Irecv(coming, source=left, tag=_HEADER_TAG)
        receives = [
            self._mpi.Irecv(as_bytes(buffer), source=left, tag=_DATA_TAG) for buffer in buffers
        ]
        sends = [self._mpi.Isend(headers, dest=right, tag=_HEADER_TAG)]
        sends += [self._mpi.Isend(as_bytes(host), dest=right, tag=_DATA_TAG) for host, _ in sent]

        def finish() -> list[Host]:
            self._until(arrival, left, step)
            for numbers, wanted in zip(coming, expected, strict=True):
                got = decode(numbers)
                if got != wanted:
                    self.watch.stop(
                        Notice(self.rank, (left,), step, Reason.MISMATCH, str(got), str(wanted))
                    )
            for receive in receives:
                self._until(receive, left, step)
            for send in sends:
                self._until(send, right, step)
            return buffers

        return finish

    def _until(self, request: Any, other: int, step: int) -> None:
        """Return when a request, which needs another rank, is done.

        Raises RingError as `Watch.until` does, and if MPI reports an error.
        """

        def done() -> bool:
            try:
                return bool(request.Test())
            except RuntimeError as error:  # of MPI, or another rank's Abort
                message = f"rank {self.rank} was stopped in {place(step)}: {error}"
                raise RingError(message, (), step) from error

        self.watch.until(done, (other,), step)

    def _everyone(self, numbers: Host) -> Host:
        """The arrays of all ranks, stacked in their order, in log2(W) hops.

        Source: Bruck et al., "Efficient algorithms for all-to-all communications in multiport
        message-passing systems", 1997, the concatenation algorithm.
        """
        blocks = numbers[np.newaxis]  # in row i that of rank r + i
        while len(blocks) < self.world_size:
            have = len(blocks)
            part = np.ascontiguousarray(blocks[: self.world_size - have])
            (found,) = self._exchange(
                [(part, dtype_name(part))],
                [part.shape],
                right=(self.rank - have) % self.world_size,
                left=(self.rank + have) % self.world_size,
                step=COLLECTIVE,
            )()
            blocks = np.concatenate([blocks, found])
        return np.roll(blocks, self.rank, axis=0)

    def _sum_in_parts(self, numbers: Host) -> Host:
        """The sum of long arrays: each part goes round once to be added up, once to be copied."""
        right, left = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        total = numbers.copy()
        parts: list[Any] = np.array_split(total, self.world_size)
        for hop in range(2 * (self.world_size - 1)):
            going = parts[(self.rank - hop) % self.world_size]
            coming = parts[(self.rank - hop - 1) % self.world_size]
            (found,) = self._exchange(
                [(going, dtype_name(going))],
                [coming.shape],
                right=right,
                left=left,
                step=COLLECTIVE,
            )()
            coming[...] = coming + found if hop < self.world_size - 1 else found
        return total


def communicator(mpi: Any, timeout: float = TIMEOUT) -> MpiCommunicator:
    """The core's communicator from the simulated MPI of `simulate`, or from `MPI.COMM_WORLD`."""
    return MpiCommunicator(mpi, timeout)
