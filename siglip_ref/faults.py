"""Whom the ranks of a ring name when one of them fails, whatever carries their messages.

A rank that stops gives notice of why, and of whom it waited for; the others answer with theirs. So
whoever is accused and does not answer is the one that is silent. A verdict is a function of the
notices alone: ranks that have heard the same name the same. Under MPI each rank comes to its own,
from what reached it in the time of grace, and with Torch all take the first that is written down.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

COLLECTIVE = -1
"""Stands for the ring step in sums and gathers over all ranks."""

GRACE = 1.0
"""Seconds in which the others can be heard before a rank decides whom to name."""


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
    """An accusation; a rank that failed, or holds a number that is not finite, accuses itself.

    Where a rank learns only with the numbers that they are not finite, it accuses their sender.
    """

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


def place(step: int) -> str:
    """A ring step in words."""
    return "a sum or gather over the ranks" if step == COLLECTIVE else f"ring step {step}"


def verdict(notices: Sequence[Notice]) -> dict[int, Notice]:
    """Who is at fault, each with the notice that says so.

    By their own word or numbers, else whose messages fit nobody's, else those who are waited for
    and do not answer. A rank that uses another shape or dtype disagrees with both its neighbours,
    and they with it alone, so it is in most of the pairs that disagree.
    """
    confessions = [n for n in notices if n.reason in (Reason.FAILED, Reason.NOT_FINITE)]
    if confessions:
        named = {suspect for notice in confessions for suspect in notice.suspects}
        return _accused(named, confessions)
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
    # The earliest ring step says most; the sum over the ranks comes after all of them.
    in_order = sorted(notices, key=lambda notice: (notice.step == COLLECTIVE, notice.step))
    return {
        rank: next(notice for notice in in_order if rank in notice.suspects)
        for rank in sorted(ranks)
    }


def settled(notices: Sequence[Notice], world_size: int) -> bool:
    """Whether nothing more can be heard that would change the verdict."""
    unheard = set(range(world_size)) - {notice.accuser for notice in notices}
    # Of two that were not heard yet, one may only be slow to answer.
    return len(unheard) <= 1 and unheard <= verdict(notices).keys()


def error_of(found: dict[int, Notice], timeout: float) -> RingError:
    """The error that a verdict comes to, in a ring with a timeout in seconds."""
    message = "; ".join(notice.text(rank, timeout) for rank, notice in found.items())
    return RingError(message, tuple(found), next(iter(found.values())).step)
