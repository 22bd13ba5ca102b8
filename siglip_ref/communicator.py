"""What the losses on a ring ask of a group of devices."""

from typing import Protocol, runtime_checkable

from siglip_ref.types import Array

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
    rank it concerns and in which step, and let no rank wait for ever.
    """

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""

    @property
    def world_size(self) -> int:
        """How many devices there are."""

    def start_shift(self, arrays: Arrays) -> Shift:
        """Send arrays to the right and begin to receive as many from the left.

        Shapes may differ between the ranks. What is sent must not be written to before it is
        waited for.
        """

    def sum(self, array: Array) -> Array:
        """The sum of the arrays of all ranks, the same on each."""

    def gather(self, value: int) -> tuple[int, ...]:
        """The numbers of all ranks, in their order."""
