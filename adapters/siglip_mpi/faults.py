"""What the ranks tell each other when one of them fails, and whom they agree to name.

A rank that stops, for whatever reason, sends a notice to all others. Each of them answers with
whom it waits for, so whoever neither answers nor is accused of something worse is the one that is
silent: a rank that died or hangs is named by all, not only by its right neighbour.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

import numpy as np

from siglip_mpi.message import COLLECTIVE, HEADER, Header, decode, place

POLL = 1e-4
"""Seconds between two looks at what has arrived."""

GRACE = 1.0
"""Seconds in which the others can be heard before a rank decides whom to name."""

_NOTICE_TAG = 3


class Reason(IntEnum):
    """Why a rank gives notice."""

    FAILED = 0
    NOT_FINITE = 1
    MISMATCH = 2
    SILENT = 3


class RingError(RuntimeError):
    """The ring cannot go on; `ranks` are those at fault, `step` is the ring step."""

    def __init__(self, message: str, ranks: tuple[int, ...], step: int) -> None:
        super().__init__(message)
        self.ranks, self.step = ranks, step


class Notice(NamedTuple):
    """An accusation; a rank that failed, or holds a number that is not finite, accuses itself."""

    accuser: int
    suspect: int
    step: int
    reason: Reason
    sent: Header | None = None
    expected: Header | None = None

    def encode(self) -> list[int]:
        """The notice in numbers."""
        headers = [h.encode() if h else [0] * HEADER for h in (self.sent, self.expected)]
        return [self.accuser, self.suspect, self.step, self.reason, *headers[0], *headers[1]]

    def text(self, timeout: float) -> str:
        """The notice in words."""
        where = place(self.step)
        match self.reason:
            case Reason.FAILED:
                return f"rank {self.suspect} failed in {where}"
            case Reason.NOT_FINITE:
                return f"rank {self.suspect} holds a number that is not finite in {where}"
            case Reason.MISMATCH:
                return (
                    f"rank {self.suspect} sent {self.sent}, "
                    f"where rank {self.accuser} expected {self.expected}"
                )
            case Reason.SILENT:
                return (
                    f"rank {self.suspect} did nothing for {timeout:g} s; "
                    f"rank {self.accuser} waited for it in {where}"
                )


class Verdict(NamedTuple):
    """Who is at fault, and the notices that say so."""

    ranks: tuple[int, ...]
    notices: tuple[Notice, ...]


def verdict(notices: Sequence[Notice]) -> Verdict:
    """Who is at fault: by their own word, else whose messages fit nobody's, else the silent ones.

    A rank that uses another shape or dtype disagrees with both its neighbours, and they with it
    alone, so it is in most of the pairs that disagree.
    """
    confessions = [notice for notice in notices if notice.suspect == notice.accuser]
    if confessions:
        return _accused({notice.suspect for notice in confessions}, confessions)
    mismatches = [notice for notice in notices if notice.reason is Reason.MISMATCH]
    if mismatches:
        votes = Counter(rank for notice in mismatches for rank in notice[:2])
        suspects = {notice.suspect for notice in mismatches}
        most = max(votes[rank] for rank in suspects)
        return _accused({rank for rank in suspects if votes[rank] == most}, mismatches)
    heard = {notice.accuser for notice in notices}
    suspects = {notice.suspect for notice in notices}
    return _accused(suspects - heard or suspects, notices)


def _accused(ranks: set[int], notices: Sequence[Notice]) -> Verdict:
    found: dict[int, Notice] = {}
    # The earliest ring step says most; a sum over the ranks comes after all of them.
    for notice in sorted(notices, key=lambda notice: (notice.step == COLLECTIVE, notice.step)):
        if notice.suspect in ranks:
            found.setdefault(notice.suspect, notice)
    return Verdict(tuple(sorted(found)), tuple(found[rank] for rank in sorted(found)))


class Watch:
    """Waits for a rank's requests, and for bad news, at the same time."""

    def __init__(self, mpi: Any, timeout: float) -> None:
        self._mpi, self._timeout = mpi, timeout
        self._rank, self._world = int(mpi.Get_rank()), set(range(int(mpi.Get_size())))
        self._notices: list[Notice] = []
        self._sent: list[tuple[int, Any]] = []
        self._error: RingError | None = None

    def until(self, request: Any, other: int, step: int) -> None:
        """Return when the request, which needs another rank, is done.

        Raises RingError if that takes longer than the timeout, or as soon as any rank gives notice
        that it stops.
        """
        end = time.monotonic() + self._timeout
        while not self._done(request, step):
            if self._listen() or time.monotonic() > end:
                self.stop(Notice(self._rank, other, step, Reason.SILENT))
            time.sleep(POLL)

    def stop(self, notice: Notice) -> NoReturn:
        """Tell all ranks of a fault, hear what they say, and raise RingError."""
        self.tell(notice)
        self.linger(until=lambda: self._settled() and self._told())
        found = verdict(self._notices)
        message = "; ".join(notice.text(self._timeout) for notice in found.notices)
        self._error = RingError(message, found.ranks, found.notices[0].step)
        raise self._error

    def tell(self, notice: Notice) -> None:
        """Tell all other ranks of a fault, once."""
        if self._sent:
            return
        self._notices.append(notice)
        numbers = np.asarray(notice.encode(), dtype=np.int64)
        for rank in self._world - {self._rank}:
            # A rank that is gone cannot be told.
            with contextlib.suppress(RuntimeError):
                self._sent.append((rank, self._mpi.Isend(numbers, dest=rank, tag=_NOTICE_TAG)))

    def linger(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let messages come and go for the time of grace, or until there is nothing to wait for."""
        end = time.monotonic() + GRACE
        while not until() and time.monotonic() < end:
            self._listen()
            time.sleep(POLL)

    def check(self) -> None:
        """Raise the error with which this ring has stopped, if it has."""
        if self._error is not None:
            raise self._error

    def _done(self, request: Any, step: int) -> bool:
        try:
            return bool(request.Test())
        except RuntimeError as error:  # of MPI, or another rank's Abort
            message = f"rank {self._rank} was stopped in {place(step)}: {error}"
            raise RingError(message, (), step) from error

    def _listen(self) -> bool:
        """Whether there is bad news, having taken note of it."""
        with contextlib.suppress(RuntimeError):
            while self._mpi.Iprobe(tag=_NOTICE_TAG):
                numbers = np.empty(4 + 2 * HEADER, dtype=np.int64)
                self._mpi.Irecv(numbers, tag=_NOTICE_TAG).Wait()
                headers = (decode(part) for part in numbers[4:].reshape(2, HEADER))
                accuser, suspect, step, reason = (int(number) for number in numbers[:4])
                self._notices.append(Notice(accuser, suspect, step, Reason(reason), *headers))
        return bool(self._notices)

    def _told(self) -> bool:
        """Whether the notices of this rank have left it, but for those to the ranks at fault."""
        faulty = verdict(self._notices).ranks
        try:
            return all(request.Test() for rank, request in self._sent if rank not in faulty)
        except RuntimeError:
            return True

    def _settled(self) -> bool:
        """Whether nothing more can be heard that would change the verdict."""
        unheard = self._world - {notice.accuser for notice in self._notices}
        # Of two that were not heard yet, one may only be slow to answer.
        return len(unheard) <= 1 and unheard <= set(verdict(self._notices).ranks)
