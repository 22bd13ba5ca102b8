"""Sums over the lines of the logits as arrays that travel: (maximum, sum, mass, match) in a row."""

from collections.abc import Sequence

from array_api_compat import array_namespace

from siglip_ref.losses.softmax import LineStatistics
from siglip_ref.types import Array, Float


def pack(lines: LineStatistics) -> Float[Array, "m 4"]:
    """The sums of each line, of rows (m, 1) or of columns (1, m)."""
    xp = array_namespace(lines.maximum)
    return xp.stack([xp.reshape(part, (-1,)) for part in lines], axis=1)


def unpack_columns(packed: Float[Array, "m 4"]) -> LineStatistics:
    """The sums over columns, (1, m)."""
    xp = array_namespace(packed)
    return LineStatistics(*(xp.expand_dims(packed[:, k], axis=0) for k in range(4)))


def unpack_rows(packed: Float[Array, "n 4"]) -> LineStatistics:
    """The sums over rows, (n, 1)."""
    xp = array_namespace(packed)
    return LineStatistics(*(xp.expand_dims(packed[:, k], axis=1) for k in range(4)))


def joined(parts: Sequence[LineStatistics]) -> LineStatistics:
    """The sums over rows of several blocks, one below the other."""
    xp = array_namespace(parts[0].maximum)
    return LineStatistics(*(xp.concat(list(fields), axis=0) for fields in zip(*parts, strict=True)))
