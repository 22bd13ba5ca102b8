"""Which rows of the global batch are on which rank."""

from collections import Counter
from itertools import accumulate
from typing import NamedTuple

from array_api_compat import array_namespace, device

from siglip_ref.communicator import Communicator
from siglip_ref.losses.blocks import check_embeddings
from siglip_ref.types import Array, Count, Float, Int


class Shards(NamedTuple):
    """How many rows each rank has. The global batch is the shards in the order of the ranks."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.counts)

    def rows(self, rank: Count) -> int:
        """How many rows a rank has."""
        # In a program compiled for all ranks the rank is no number, but then all have as many.
        return self.counts[0] if len(set(self.counts)) == 1 else self.counts[int(rank)]

    def indices(self, rank: Count, like: Array) -> Int[Array, " n"]:
        """The global indices of the rows of a rank."""
        xp = array_namespace(like)
        starts = xp.asarray([0, *accumulate(self.counts)], device=device(like))
        return xp.arange(self.rows(rank), device=device(like)) + starts[rank]


def shards_of(
    zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"], comm: Communicator
) -> tuple[Shards, Shards]:
    """The shards of the images and those of the texts.

    Raises ValueError, on all ranks, unless each has at least one image and one text, in matrices
    with rows of one size everywhere; the message names a rank that has not.
    """
    sizes = comm.gather((*_size(zimg), *_size(ztxt)))
    check_embeddings(zimg, ztxt)
    for rank, (n, image_size, m, text_size) in enumerate(sizes):
        if n < 1 or m < 1 or image_size != text_size:
            raise ValueError(
                "every rank must hold at least one image and one text, with rows of one size, "
                f"got matrices of ({n}, {image_size}) and ({m}, {text_size}) on rank {rank}"
            )
    widths = [image_size for _, image_size, _, _ in sizes]
    usual = Counter(widths).most_common(1)[0][0]
    for rank, width in enumerate(widths):
        if width != usual:
            raise ValueError(
                f"embeddings must have one size on all ranks, "
                f"got {width} on rank {rank} and {usual} on rank {widths.index(usual)}"
            )
    return Shards(tuple(size[0] for size in sizes)), Shards(tuple(size[2] for size in sizes))


def _size(z: Array) -> tuple[int, int]:
    """Rows and columns; 0 and 0 of what is no matrix, so that all ranks learn of it."""
    return (z.shape[0], z.shape[1]) if z.ndim == 2 else (0, 0)
