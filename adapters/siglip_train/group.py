"""What the devices of a group do together, beside the loss: agree, share out, and stop."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from array_api_compat import array_namespace

from siglip_ref.communicator import Communicator
from siglip_ref.types import Array

MISTAKES = (ValueError, TypeError, OSError)
"""Errors of settings, data and files, which a user mends; all others are bugs."""


class PartingError(Exception):
    """All devices of the group stop at one place; one of them has the `cause` to tell."""

    def __init__(self, cause: Exception | None) -> None:
        super().__init__(cause)
        self.cause = cause


class ToldError(Exception):
    """An error of the whole group, of which the user has been told."""


def tell(error: Exception) -> None:
    """Say on the terminal what has ended the run."""
    print(f"siglip-train: error: {error}", file=sys.stderr, flush=True)


def is_first(comm: Communicator | None) -> bool:
    """Whether this is the device that prints and writes."""
    return comm is None or comm.rank == 0


@contextmanager
def together(
    comm: Communicator | None, holds: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[], bool]]:
    """Let a mistake that any device makes inside end this block on all of them.

    Inside, a device may wait for others only before any of them can make a mistake. Afterwards the
    yielded function tells whether `holds` did so on any device at the end; the same answer on all.

    Raises PartingError on all devices, with the mistake as its cause on the first that made one; a
    lone device raises the mistake itself.
    """
    if comm is None:
        yield holds
        return
    mistake: Exception | None = None
    answer = False
    try:
        yield lambda: answer
    except MISTAKES as error:
        mistake = error
    failed, held = zip(*comm.gather((int(mistake is not None), int(holds()))), strict=True)
    if any(failed):
        raise PartingError(mistake if failed.index(1) == comm.rank else None) from mistake
    answer = any(held)


def from_all(array: Array, comm: Communicator | None) -> Array:
    """The arrays (n, …) of all devices, one below the other in their order, on each."""
    if comm is None:
        return array
    xp = array_namespace(array)
    places = range(comm.world_size)
    return comm.sum(
        xp.concat([array if place == comm.rank else xp.zeros_like(array) for place in places])
    )
