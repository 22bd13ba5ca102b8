"""The core's communicator over a mesh axis of `jax.shard_map`."""

from typing import NamedTuple

import jax

from siglip_ref.communicator import Arrays
from siglip_ref.types import Array, Int


class JaxShift(NamedTuple):
    """Arrays that are on their way; XLA decides what runs while they are."""

    arrays: Arrays

    def wait(self) -> Arrays:
        """The arrays from the left neighbour."""
        return self.arrays


class JaxCommunicator:
    """The devices of a mesh axis, inside `jax.shard_map`, where one program is compiled for all.

        jax.shard_map(lambda zimg, ztxt: sr.ring.softmax_loss(zimg, ztxt, t_prime, comm), …)

    The rank is an array, and shapes are the same on all devices.
    """

    def __init__(self, axis_name: str) -> None:
        self._axis_name = axis_name

    @property
    def rank(self) -> Int[Array, ""]:
        """The index of this device along the axis."""
        return jax.lax.axis_index(self._axis_name)

    @property
    def world_size(self) -> int:
        """The size of the axis."""
        return int(jax.lax.axis_size(self._axis_name))

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> JaxShift:
        """The arrays of the left neighbour, which have the shapes of these."""
        del rows, step
        ranks = range(self.world_size)
        neighbours = [(rank, (rank + 1) % self.world_size) for rank in ranks]
        return JaxShift(tuple(jax.lax.ppermute(x, self._axis_name, neighbours) for x in arrays))

    def sum(self, array: Array) -> Array:
        """The sum over the axis."""
        return jax.lax.psum(array, self._axis_name)

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The same numbers for all: what is known when a program is compiled, it shares."""
        return (values,) * self.world_size
