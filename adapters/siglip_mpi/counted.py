"""A communicator that counts what it sends."""

import math

from siglip_ref.communicator import Arrays, Communicator, Shift
from siglip_ref.types import Array


class Counted:
    """Another communicator, with counts of the messages and bytes that this rank sends on.

    messages, num_bytes
        Of the shifts, an array being a message. Headers are not counted, since other
        implementations have none.
    sums
        Numbers that were summed over the ranks.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.messages = 0
        self.num_bytes = 0
        self.sums = 0

    @property
    def rank(self) -> int:
        """The number of this device, from 0."""
        return self._comm.rank

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return self._comm.world_size

    def start_shift(self, arrays: Arrays) -> Shift:
        """Send arrays on, and count them."""
        self.messages += len(arrays)
        self.num_bytes += sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
        return self._comm.start_shift(arrays)

    def sum(self, array: Array) -> Array:
        """The sum over all ranks; its numbers are counted."""
        self.sums += math.prod(array.shape)
        return self._comm.sum(array)

    def gather(self, value: int) -> tuple[int, ...]:
        """The numbers of all ranks, uncounted."""
        return self._comm.gather(value)
