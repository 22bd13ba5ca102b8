"""What a rank holds in a loss: the formulas of docs/ring.md, which measurements are held to.

They are those of `siglip_ref/ring/` on NumPy, at the worst moment, beside the embeddings that the
loss is given, with s bytes for a number of an embedding and s' = max(s, 4) for a gradient. What has
no factor d and does not grow with the number of ranks is left out: a tile, and sums over lines. A
compiler or a fused kernel may hold less.
"""


def sigmoid_ring(world_size: int, n: int, m: int, d: int, element: int) -> int:
    """Texts that are visited and that come, and gradients:

        2 m d s + (5 m + 3 n) d s' + (n + m) d s' if s < s'

    Of the texts' gradients there are those that a rank has found for its own, those that go, those
    that come, and the visited ones' twice, in tiles and put together. Of the images' there are the
    sum so far and the visit's, likewise twice. Narrow embeddings of both are held in float32 too.
    From 4 ranks on; fewer hold less.
    """
    del world_size
    wide = max(element, 4)
    return d * (2 * m * element + (5 * m + 3 * n) * wide) + _widened(n, m, d, element)


def softmax_ring(world_size: int, n: int, m: int, d: int, element: int) -> int:
    """The same in the second rotation, which adds to the images' gradients tile by tile:

    2 m d s + (5 m + 2 n) d s' + (n + m) d s' if s < s'.
    """
    return sigmoid_ring(world_size, n, m, d, element) - n * d * max(element, 4)


def allgather_softmax(world_size: int, n: int, m: int, d: int, element: int) -> int:
    """All embeddings, and as many logits as a rank's images and texts have with them:

        W (n + m) d s + W n m (12 s' + 8)

    These matrices are the logits, labels and gradients of both, and what a gradient is made of.
    With so few pairs that W n m is small beside W m d, the worst moment is another, in which the
    embeddings are put together.
    """
    return world_size * ((n + m) * d * element + n * m * (12 * max(element, 4) + 2 * 4))


def _widened(n: int, m: int, d: int, element: int) -> int:
    """Embeddings of 16 bits in float32."""
    return (n + m) * d * 4 if element < 4 else 0


FORMULAS = {
    formula.__name__: formula for formula in (sigmoid_ring, softmax_ring, allgather_softmax)
}
