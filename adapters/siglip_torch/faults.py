"""Where the ranks leave their notices when one of them fails: the group's store.

A rank that stops says there why, and whom it waited for. The others look there while they wait,
and answer.
"""

import json
import os
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from torch.distributed.distributed_c10d import Store

from siglip_ref.faults import GRACE, Notice, Reason, RingError, error_of, settled, verdict

_POLL = 0.02
_STOPPED, _VERDICT = "stopped", "verdict"


class StoppedError(Exception):
    """A fault that was found off the main thread."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice)
        self.notice = notice


class Board:
    """Where the ranks of a group leave their notices."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout: float) -> None:
        self._store, self._rank, self._timeout = store, rank, timeout
        self._world_size = world_size
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
        self._error = error_of(found, self._timeout)
        raise self._error

    def _agreed(self) -> dict[int, Notice]:
        """The verdict of the first rank that comes to one."""
        end = time.monotonic() + GRACE
        while not self._store.check([_VERDICT]):
            notices = self._read()
            if settled(notices, self._world_size) or time.monotonic() > end:
                found = json.dumps(list(verdict(notices).items()))
                self._store.compare_set(_VERDICT, "", found)
            else:
                time.sleep(_POLL)
        return {rank: _notice(said) for rank, said in json.loads(self._store.get(_VERDICT))}

    def _read(self) -> list[Notice]:
        """The notices of all ranks that have given any."""
        given = [rank for rank in range(self._world_size) if self._store.check([str(rank)])]
        return [_notice(json.loads(self._store.get(str(rank)))) for rank in given]


def _notice(values: Sequence[Any]) -> Notice:
    accuser, suspects, step, reason, *texts = values
    return Notice(accuser, tuple(suspects), step, Reason(reason), *texts)


def _has_agent() -> bool:
    """Whether torchrun keeps the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
