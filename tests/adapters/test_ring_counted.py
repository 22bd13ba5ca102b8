"""What the rings send, counted, is what docs/ring.md says they send."""

import numpy as np
import pytest

import siglip_ref as sr
from siglip_mpi import Counted, communicator, simulate

D = 5


def sigmoid_bytes(world_size, m, element):
    """Texts go W - 1 hops, and their gradients, in at least float32, W."""
    return (world_size - 1) * m * D * element + world_size * m * D * max(element, 4)


def softmax_bytes(world_size, m, element):
    """The texts twice, four sums for each of them in two rotations, and the gradients."""
    wide = max(element, 4)
    texts, lines = m * D * element, 4 * m * wide
    first = (world_size - 1) * texts + world_size * lines
    second = (world_size - 1) * (texts + lines) + world_size * m * D * wide
    return first + second


def counts_of(loss, world_size, m, dtype):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, world_size, m, D))
    z = (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(dtype)

    def program(mpi):
        comm = Counted(communicator(mpi, timeout=20))
        scalars = [np.asarray(x, dtype=np.float32) for x in (1.5, -2.0)]
        if loss is sr.ring.softmax_loss:
            scalars = scalars[:1]
        loss(z[0, comm.rank], z[1, comm.rank], *scalars, comm)
        return comm.messages, comm.num_bytes, comm.sums

    return simulate(world_size, program)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_the_sigmoid_ring_sends_one_rotation_of_texts_and_gradients(world_size, dtype):
    expected = sigmoid_bytes(world_size, 3, np.dtype(dtype).itemsize)
    for messages, num_bytes, sums in counts_of(sr.ring.sigmoid_loss, world_size, 3, dtype):
        assert (messages, num_bytes, sums) == (2 * world_size - 1, expected, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_the_softmax_ring_sends_two(world_size, dtype):
    expected = softmax_bytes(world_size, 3, np.dtype(dtype).itemsize)
    messages = (world_size - 1) + 4 * world_size + 5 * (world_size - 1) + world_size
    for found in counts_of(sr.ring.softmax_loss, world_size, 3, dtype):
        assert found == (messages, expected, 2)
