"""How the ranks hear of one that fails: a message to all others, which they look for as they wait.

A rank that stops, for whatever reason, sends a notice to all others, and each of them answers with
whom it waits for.
"""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from siglip_ref.faults import (
    GRACE,
    Notice,
    Reason,
    RingError,
    error_of,
    settled,
    verdict,
)

POLL = 1e-4
"""Seconds between two looks at what has arrived."""

_NOTICE_TAG = 3
_NOTICE_BYTES = 1024


def encoded(notice: Notice) -> NDArray[np.uint8]:
    """A notice as bytes, as many for all."""
    return np.frombuffer(json.dumps(notice).encode().ljust(_NOTICE_BYTES), dtype=np.uint8)


def decoded(message: NDArray[np.uint8]) -> Notice:
    """The notice that was encoded."""
    accuser, suspects, step, reason, *headers = json.loads(message.tobytes())
    return Notice(accuser, tuple(suspects), step, Reason(reason), *headers)


def rest() -> None:
    """Let other threads and processes work between two looks."""
    time.sleep(POLL)


class Watch:
    """Waits for what a rank needs of others, and for bad news, at the same time."""

    def __init__(self, mpi: Any, timeout: float) -> None:
        self._mpi, self._timeout = mpi, timeout
        self._rank, self._world_size = int(mpi.Get_rank()), int(mpi.Get_size())
        self._notices: list[Notice] = []
        self._sent: list[tuple[int, Any]] = []
        self._error: RingError | None = None

    def until(
        self,
        done: Callable[[], bool],
        others: tuple[int, ...],
        step: int,
        meanwhile: Callable[[], None] = rest,
    ) -> None:
        """Return when what needs other ranks is done; `meanwhile` is called between two looks.

        Raises RingError if it takes longer than the timeout, or as soon as any rank gives notice
        that it stops. What came before the notice is not missing, though it may be wrong.
        """
        end = time.monotonic() + self._timeout
        while not done():
            in_vain = self._listen() or time.monotonic() > end
            if in_vain and not done():
                self.stop(Notice(self._rank, others, step, Reason.SILENT))
            meanwhile()

    def stop(self, notice: Notice) -> NoReturn:
        """Tell all ranks of a fault, hear what they say, and raise RingError."""
        self.tell(notice)
        self.linger(until=lambda: settled(self._notices, self._world_size) and self._told())
        self._error = error_of(verdict(self._notices), self._timeout)
        raise self._error

    def tell(self, notice: Notice) -> None:
        """Tell all other ranks of a fault, once."""
        if self._sent:
            return
        self._notices.append(notice)
        message = encoded(notice)
        for rank in set(range(self._world_size)) - {self._rank}:
            # A rank that is gone cannot be told.
            with contextlib.suppress(RuntimeError):
                self._sent.append((rank, self._mpi.Isend(message, dest=rank, tag=_NOTICE_TAG)))

    def linger(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let messages come and go for the time of grace, or until there is nothing to wait for."""
        end = time.monotonic() + GRACE
        while not until() and time.monotonic() < end:
            self._listen()
            rest()

    def check(self) -> None:
        """Raise the error with which this ring has stopped, if it has."""
        if self._error is not None:
            raise self._error

    def _listen(self) -> bool:
        """Whether any rank has given notice; what it says is remembered."""
        with contextlib.suppress(RuntimeError):
            while self._mpi.Iprobe(tag=_NOTICE_TAG):
                message = np.empty(_NOTICE_BYTES, dtype=np.uint8)
                self._mpi.Irecv(message, tag=_NOTICE_TAG).Wait()
                self._notices.append(decoded(message))
        return bool(self._notices)

    def _told(self) -> bool:
        """Whether the notices of this rank have left it, but for those to the ranks at fault."""
        faulty = verdict(self._notices)
        try:
            return all(request.Test() for rank, request in self._sent if rank not in faulty)
        except RuntimeError:
            return True
