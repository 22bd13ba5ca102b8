"""Measure what a rank of a ring holds, where no shape check of the tests holds on to arguments."""

import json
import sys
import tracemalloc

import numpy as np

import siglip_ref as sr
from siglip_mpi.communicator import MpiShift


class Alone:
    """Rank 0 of a ring whose other ranks send what it sends: there is no memory but its own."""

    def __init__(self, world_size):
        self.rank, self.world_size = 0, world_size

    def start_shift(self, arrays, *, rows, step):  # noqa: ARG002
        # Both what goes and what comes is held until it is waited for.
        pair = arrays, tuple(np.copy(array) for array in arrays)
        return MpiShift(lambda: pair[1])

    def sum(self, array):
        return self.world_size * array

    def gather(self, values):
        return (values,) * self.world_size


def memory_of_a_rank(name, dtype, world_size, n, m, d):
    """Most bytes that a rank holds at once beside its embeddings."""
    rng = np.random.default_rng(0)
    zimg, ztxt = ((rng.standard_normal((rows, d)) / np.sqrt(d)).astype(dtype) for rows in (n, m))
    t_prime, b = (np.asarray(x, dtype=np.result_type(np.float32, dtype)) for x in (1.5, -2.0))
    loss = {
        "sigmoid_ring": lambda comm: sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm, tile=32),
        "softmax_ring": lambda comm: sr.ring.softmax_loss(zimg, ztxt, t_prime, comm, tile=32),
        "allgather_softmax": lambda comm: sr.ring.allgather_softmax_loss(zimg, ztxt, t_prime, comm),
    }[name]
    loss(Alone(1))  # what a first call keeps for the next is not counted
    tracemalloc.start()
    try:
        loss(Alone(world_size))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    print([memory_of_a_rank(*case) for case in json.loads(sys.argv[1])])
