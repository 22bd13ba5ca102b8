"""What the losses send: the formulas of docs/ring.md, which the counts are held to.

They are for shards of one size: n images and m texts on every rank.
"""

from typing import NamedTuple


class Traffic(NamedTuple):
    """What one device sends on, and how many numbers are summed over all devices."""

    messages: int
    num_bytes: int
    summed: int


def sigmoid_ring(world_size: int, n: int, m: int, d: int, element: int) -> Traffic:
    """The texts and their gradients make W - 1 hops each:

        (W - 1) m d (s + s')

    with s bytes for a number of an embedding and s' = max(s, 4) for sums and gradients.
    """
    del n
    hops, wide = world_size - 1, max(element, 4)
    return Traffic(2 * hops, hops * m * d * (element + wide), 3)


def softmax_ring(world_size: int, n: int, m: int, d: int, element: int) -> Traffic:
    """Two rotations: texts and running sums, then texts, finished sums and gradients:

    (W - 1) m (2 d s + 8 s' + d s').
    """
    del n
    hops, wide = world_size - 1, max(element, 4)
    return Traffic(5 * hops, hops * m * (2 * d * element + 8 * wide + d * wide), 2)


def allgather_softmax(world_size: int, n: int, m: int, d: int, element: int) -> Traffic:
    """Both kinds of embeddings, and the sums over their lines, are gathered:

    (W - 1) (n + m) (d s + 4 s').
    """
    hops, wide = world_size - 1, max(element, 4)
    return Traffic(4 * hops, hops * (n + m) * (d * element + 4 * wide), 2)


FORMULAS = {
    formula.__name__: formula for formula in (sigmoid_ring, softmax_ring, allgather_softmax)
}
