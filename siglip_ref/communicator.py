"""What the losses on a ring ask of a group of devices."""

from typing import Protocol, runtime_checkable

from siglip_ref.types import Array, Count

Arrays = tuple[Array, ...]


@runtime_checkable
class Shift(Protocol):
    """Arrays on their way to the right neighbour."""

    def wait(self) -> Arrays:
        """The arrays that came from the left neighbour, once they are here."""


@runtime_checkable
class Communicator(Protocol):
    """A group of devices in a ring: rank r has r + 1 to its right, and the last has the first.

    Every rank calls the same methods in the same order. Implementations say on an error which
    rank it concerns and in which ring step, and let no rank wait for ever.
    """

    @property
    def rank(self) -> Count:
        """The number of this device, from 0; an array where one program is compiled for all."""

    @property
    def world_size(self) -> int:
        """How many devices there are."""

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> Shift:
        """Send arrays to the right and begin to receive as many from the left, in a ring step.

        What comes has the dtypes and shapes of what goes, but for `rows` on the first axis. What
        is sent must not be written to before it is waited for.
        """

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, to the last bit the same on each."""

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, in their order. Where shapes are static, all are alike."""
