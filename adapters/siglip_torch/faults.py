"""Whom the ranks name when one of them fails: notices that they leave in the group's store.

A rank that stops says there why, and whom it waited for. The others look there while they wait,
and answer, so whoever is accused and does not answer is the one that is silent.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, NoReturn

from torch.distributed.distributed_c10d import Store

GRACE = 1.0
"""Seconds in which the others can be heard before a rank decides whom to name."""

COLLECTIVE = -1
"""Stands for the ring step in sums and gathers over all ranks."""

_POLL = 0.02
_STOPPED, _VERDICT = "stopped", "verdict"


class Reason(StrEnum):
    """Why a rank gives notice."""

    FAILED = "failed"
    NOT_FINITE = "not finite"
    MISMATCH = "mismatch"
    CLOSED = "closed"
    SILENT = "silent"


class RingError(RuntimeError):
    """The ring cannot go on; `ranks` are those at fault, `step` is the ring step."""

    def __init__(self, message: str, ranks: tuple[int, ...], step: int) -> None:
        super().__init__(message)
        self.ranks, self.step = ranks, step


class Notice(NamedTuple):
    """An accusation; a rank that failed, or holds a number that is not finite, accuses itself."""

    accuser: int
    suspects: tuple[int, ...]
    step: int
    reason: Reason
    sent: str = ""
    expected: str = ""

    def text(self, rank: int, timeout: float) -> str:
        """What the notice says of one of its suspects."""
        where = place(self.step)
        match self.reason:
            case Reason.FAILED:
                return f"rank {rank} failed in {where}"
            case Reason.NOT_FINITE:
                return f"rank {rank} holds a number that is not finite in {where}"
            case Reason.MISMATCH:
                return f"rank {rank} sent {self.sent}, where rank {self.accuser} expected " + (
                    self.expected
                )
            case Reason.CLOSED:
                return (
                    f"rank {rank} closed its connection; rank {self.accuser} waited for it in "
                    f"{where}"
                )
            case Reason.SILENT:
                return (
                    f"rank {rank} did nothing for {timeout:g} s; rank {self.accuser} waited for "
                    f"it in {where}"
                )


class StoppedError(Exception):
    """A fault that was found off the main thread."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice)
        self.notice = notice


def place(step: int) -> str:
    """A ring step in words."""
    return "a sum over the ranks" if step == COLLECTIVE else f"ring step {step}"


def verdict(notices: Sequence[Notice]) -> dict[int, Notice]:
    """Who is at fault, each with the notice that says so.

    By their own word, else whose messages fit nobody's, else those who are waited for and do not
    answer. A rank that uses another shape or dtype disagrees with both its neighbours, and they
    with it alone, so it is in most of the pairs that disagree.
    """
    confessions = [n for n in notices if n.reason in (Reason.FAILED, Reason.NOT_FINITE)]
    if confessions:
        return _accused({notice.accuser for notice in confessions}, confessions)
    mismatches = [notice for notice in notices if notice.reason is Reason.MISMATCH]
    if mismatches:
        pairs = [(notice.accuser, suspect) for notice in mismatches for suspect in notice.suspects]
        votes = Counter(rank for pair in pairs for rank in pair)
        most = max(votes[suspect] for _, suspect in pairs)
        return _accused({suspect for _, suspect in pairs if votes[suspect] == most}, mismatches)
    heard = {notice.accuser for notice in notices}
    suspects = {suspect for notice in notices for suspect in notice.suspects}
    return _accused(suspects - heard or suspects, notices)


def _accused(ranks: set[int], notices: Iterable[Notice]) -> dict[int, Notice]:
    # The earliest ring step says most; a sum over the ranks comes after all of them.
    in_order = sorted(notices, key=lambda notice: (notice.step == COLLECTIVE, notice.step))
    return {
        rank: next(notice for notice in in_order if rank in notice.suspects)
        for rank in sorted(ranks)
    }


class Board:
    """Where the ranks of a group leave their notices."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout: float) -> None:
        self._store, self._rank, self._timeout = store, rank, timeout
        self._world = set(range(world_size))
        self._error: RingError | None = None

    def check(self) -> None:
        """Raise the error with which this ring has stopped, if it has."""
        if self._error is not None:
            raise self._error

    def stopped(self) -> bool:
        """Whether any rank has given notice. A store that is gone says nothing."""
        try:
            return self._store.check([_STOPPED])
        except RuntimeError:
            return False

    def post(self, notice: Notice) -> None:
        """Give notice; of several the last one counts."""
        try:
            self._store.set(str(self._rank), json.dumps(notice))
            self._store.set(_STOPPED, "")
        except RuntimeError:
            pass  # `stop` says what that means

    def stop(self, notice: Notice) -> NoReturn:
        """Give notice, hear what the others say, and raise RingError, the same on all ranks."""
        self.check()
        self.post(notice)
        try:
            found = self._agreed()
        except RuntimeError:
            # The store is gone. Where torchrun keeps none, it was on rank 0.
            at_fault = notice.suspects if _has_agent() else (0,)
            found = verdict([notice._replace(suspects=at_fault)])
        message = "; ".join(said.text(rank, self._timeout) for rank, said in found.items())
        self._error = RingError(message, tuple(found), next(iter(found.values())).step)
        raise self._error

    def _agreed(self) -> dict[int, Notice]:
        """The verdict of the first rank that comes to one."""
        end = time.monotonic() + GRACE
        while not self._store.check([_VERDICT]):
            notices = self._read()
            if self._settled(notices) or time.monotonic() > end:
                found = json.dumps(list(verdict(notices).items()))
                self._store.compare_set(_VERDICT, "", found)
            else:
                time.sleep(_POLL)
        return {rank: _notice(said) for rank, said in json.loads(self._store.get(_VERDICT))}

    def _read(self) -> list[Notice]:
        """The notices of all ranks that have given any."""
        given = [rank for rank in sorted(self._world) if self._store.check([str(rank)])]
        return [_notice(json.loads(self._store.get(str(rank)))) for rank in given]

    def _settled(self, notices: Sequence[Notice]) -> bool:
        """Whether nothing more can be heard that would change the verdict."""
        unheard = self._world - {notice.accuser for notice in notices}
        # Of two that were not heard yet, one may only be slow to answer.
        return len(unheard) <= 1 and unheard <= verdict(notices).keys()


def _notice(values: Sequence[Any]) -> Notice:
    accuser, suspects, step, reason, *texts = values
    return Notice(accuser, tuple(suspects), step, Reason(reason), *texts)


def _has_agent() -> bool:
    """Whether torchrun keeps the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
