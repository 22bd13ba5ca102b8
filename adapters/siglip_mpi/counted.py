"""A communicator that counts what it sends."""

import math

from siglip_mpi.message import dtype_name
from siglip_ref.communicator import Arrays, Communicator, Shift
from siglip_ref.types import Array, Count

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


class Counted:
    """Another communicator, with counts of the messages and bytes that this rank sends on.

    messages, num_bytes
        Of the shifts, an array being a message. Headers are not counted, since other
        implementations have none.
    summed
        Numbers that were summed over the ranks.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.messages = 0
        self.num_bytes = 0
        self.summed = 0

    @property
    def rank(self) -> Count:
        """The number of this device, from 0."""
        return self._comm.rank

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return self._comm.world_size

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> Shift:
        """Send arrays on, and count them."""
        self.messages += len(arrays)
        self.num_bytes += sum(math.prod(x.shape) * BYTES[dtype_name(x)] for x in arrays)
        return self._comm.start_shift(arrays, rows=rows, step=step)

    def sum(self, array: Array) -> Array:
        """The sum over all ranks; its numbers are counted."""
        self.summed += math.prod(array.shape)
        return self._comm.sum(array)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers of all ranks, uncounted."""
        return self._comm.gather(values)

    def __str__(self) -> str:
        """The counts in words."""
        return (
            f"rank {self.rank} of {self.world_size}: {self.messages} messages of "
            f"{self.num_bytes} bytes sent on, {self.summed} numbers summed over the ranks"
        )
