"""Cutting a batch into parts that are worked on one at a time."""

from collections.abc import Iterator


def tiles(name: str, count: int, tile: int) -> Iterator[slice]:
    """Consecutive slices of at most `tile` out of `count` rows.

    Raises ValueError, calling the argument `name`, if `tile` is not a positive integer.
    """
    if not isinstance(tile, int) or tile < 1:
        raise ValueError(f"{name} must be a positive integer, got {tile!r}")
    return (slice(start, min(start + tile, count)) for start in range(0, count, tile))
