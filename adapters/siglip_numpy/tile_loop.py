"""The tiled sigmoid loss in place: the three matrix products of a tile and little beside them.

What `siglip_ref.losses.tiled_sigmoid_loss` computes, and in its terms; only the order of the sums
and the buffers are others. Tiles that share no image and no text run side by side.
"""

import math
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents, pair_nll
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.tiles import tiles
from siglip_ref.types import Map

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

LARGEST_TILE = 1024
"""Rows and columns: a tenth faster than 512 with d = 768 on two AVX-512 cores, level on AVX2."""

SMALLEST_TILE = 512
"""Rows and columns that are not cut further if two such tiles are there."""

STRIP = 2**18
"""Logits that are worked on at a time: in a cache, and few enough calls for two threads."""


class Share(NamedTuple):
    """A tile's share of the sums over all pairs."""

    nll: float
    dlogits: float
    dt_prime: float = 0.0
    """Of all pairs of the tile's images, from the last of their tiles."""


def tiled_sigmoid_loss(
    zimg: Floats,
    ztxt: Floats,
    t_prime: Floats,
    b: Floats,
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
    rows: Ints | None = None,
    columns: Ints | None = None,
    total: int | None = None,
    parallel_map: Map = map,
) -> tuple[Floats, SigmoidLossCotangents]:
    """The loss and its gradients at dloss = 1, as the core's function of this name gives them.

    Tiles have at most `tile`, and at most 1,024, rows and columns; of two rows or more there are
    two tiles or more, of 2,048 or more four. Beside inputs and outputs each thread of
    `parallel_map` holds a tile of logits and one of embeddings. Every sum runs in a fixed order, so
    the bits do not depend on the threads.

    Raises ValueError as the core's function does.
    """
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    rows, columns = indices(zimg, rows), indices(ztxt, columns)
    total = zimg.shape[0] if total is None else total
    wide = np.result_type(at_least_float32(zimg[:1]), at_least_float32(ztxt[:1]))
    t, bias = math.exp(float(t_prime)), float(b)
    dzimg, dztxt = (np.empty(z.shape, dtype=wide) for z in (zimg, ztxt))
    image_tiles, text_tiles = (
        list(tiles("tile", len(z), smaller(tile, len(z)))) for z in (zimg, ztxt)
    )
    buffers = Buffers(wide)
    images_done, texts_done = [0] * len(image_tiles), [0] * len(text_tiles)

    def add_product(x: Floats, y: Floats, dz: Floats, *, first: bool, last: bool) -> None:
        """Add x y to a gradient, begin it with x y, and scale it when nothing more is to come."""
        if first:
            np.matmul(x, y, out=dz)
        else:
            dz += np.matmul(x, y, out=buffers.take("embeddings", *dz.shape))
        if last:
            dz *= t / total

    def work(place: tuple[int, int]) -> Share:
        image_tile, text_tile = image_tiles[place[0]], text_tiles[place[1]]
        images = zimg[image_tile].astype(wide, copy=False)
        texts = ztxt[text_tile].astype(wide, copy=False)
        logits = buffers.take("logits", len(images), len(texts))
        np.matmul(images, texts.T, out=logits)
        logits *= t
        logits += bias
        if pairs is diagonal:
            matches = equal_indices(rows[image_tile], columns[text_tile])
            share = diagonal_share(logits, matches, buffers)
        else:
            each, dlogits = pair_nll(logits, pairs(rows[image_tile], columns[text_tile]))
            logits[...] = dlogits
            share = Share(float(np.sum(each)), float(np.sum(logits)))
        dimages, dtexts = dzimg[image_tile], dztxt[text_tile]
        row, column = images_done[place[0]], texts_done[place[1]]
        images_done[place[0]], texts_done[place[1]] = row + 1, column + 1
        last = row + 1 == len(text_tiles), column + 1 == len(image_tiles)
        add_product(logits, texts, dimages, first=row == 0, last=last[0])
        add_product(logits.T, images, dtexts, first=column == 0, last=last[1])
        # In float64 too: n·d products of both signs cancel to what is often a small number.
        return share._replace(dt_prime=float(np.vdot(images, dimages))) if last[0] else share

    # Python's floats: sums over tiles in float64, whatever the tiles are in.
    nll = db = dt_prime = 0.0
    for places in disjoint_places(len(image_tiles), len(text_tiles)):
        for share in parallel_map(work, places):
            nll, db, dt_prime = nll + share.nll, db + share.dlogits, dt_prime + share.dt_prime
    loss_dtype = np.result_type(wide, at_least_float32(t_prime), at_least_float32(b))
    return np.asarray(nll / total, dtype=loss_dtype), SigmoidLossCotangents(
        cast_like(dzimg, zimg),
        cast_like(dztxt, ztxt),
        np.asarray(dt_prime, dtype=t_prime.dtype),
        np.asarray(db / total, dtype=b.dtype),
    )


def diagonal_share(logits: Floats, matches: tuple[Ints, Ints], buffers: "Buffers") -> Share:
    """Σ softplus(-labels logits), whose gradient by the logits takes their place.

    With z = -labels logits, E = exp(z) and u = 1 + E, which is rounded:

        softplus(z) = log1p(E) = log(u) + (E - (u - 1)) / u;    σ(z) = E / u

    The second form of the logarithm is for processors on which NumPy takes log1p one by one.

    A strip of logits at a time. Almost all labels are -1, so z = logits but for `matches`, where
    the sign is changed before and after. Beyond a limit E would overflow: there softplus(z) = z
    and σ(z) = 1 to the last bit.
    """
    logits[matches] *= -1
    nll = dlogits = 0.0
    limit = largest_exponent(logits.dtype)
    step = max(1, STRIP // logits.shape[1])
    for start in range(0, len(logits), step):
        e = logits[start : start + step]
        if not np.max(e) < limit:
            nll += float(np.sum(np.maximum(e - limit, 0)))
            np.minimum(e, limit, out=e)
        np.exp(e, out=e)
        logs = buffers.take("logs", *e.shape)
        if log1p_is_fast():
            nll += float(np.sum(np.log1p(e, out=logs)))
            e /= np.add(e, 1, out=logs)
        else:
            u = np.add(e, 1, out=buffers.take("u", *e.shape))
            nll += float(np.sum(np.log(u, out=logs)))
            rounded = np.subtract(u, 1, out=logs)
            np.subtract(e, rounded, out=rounded)
            np.divide(1, u, out=u)
            nll += float(np.vdot(rounded, u))
            e *= u
        dlogits += float(np.sum(e))
    matched = logits[matches]
    logits[matches] = -matched
    return Share(nll, dlogits - 2 * float(np.sum(matched)))


def smaller(tile: int, count: int) -> int:
    """The size of the tiles of so many rows, where `tile` is asked for."""
    # What is no positive integer is left for `tiles` to refuse.
    if tile != int(tile):
        return tile
    return min(tile, LARGEST_TILE, max(1, count // 4, min(SMALLEST_TILE, count // 2)))


@cache
def log1p_is_fast() -> bool:
    """Whether NumPy has log1p in vector instructions of this processor."""
    introspect = getattr(np.lib, "introspect", None)  # not in the first NumPy 2
    if introspect is None:
        return False
    (kinds,) = introspect.opt_func_info(func_name="^log1p$", signature="float32").values()
    return all(not kind["current"].startswith("baseline") for kind in kinds.values())


def largest_exponent(dtype: np.dtype[Any]) -> float:
    """A number just below that where exp overflows."""
    return math.log(float(np.finfo(dtype).max)) - 1


def equal_indices(rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
    """The places (i, j) with rows[i] = columns[j]."""
    if rows.max() < columns.min() or columns.max() < rows.min():
        none = np.zeros(0, dtype=np.intp)
        return none, none
    order = np.argsort(columns, kind="stable")
    first = np.searchsorted(columns, rows, "left", sorter=order)
    counts = np.searchsorted(columns, rows, "right", sorter=order) - first
    i = np.repeat(np.arange(len(rows)), counts)
    nth = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    return i, order[first[i] + nth]


def disjoint_places(n: int, m: int) -> Iterable[list[tuple[int, int]]]:
    """All places of an n × m grid, in groups without two in one row or in one column."""
    short, long = min(n, m), max(n, m)
    for shift in range(long):
        group = [(i, (i + shift) % long) for i in range(short)]
        yield group if n <= m else [(j, i) for i, j in group]


class Buffers(threading.local):
    """Memory that each thread uses for tile after tile."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._flat: dict[str, Floats] = {}

    def take(self, name: str, n: int, m: int) -> Floats:
        """An (n, m) array with anything in it; the next one of this name overwrites it."""
        if name not in self._flat or self._flat[name].size < n * m:
            self._flat[name] = np.empty(n * m, dtype=self._dtype)
        return self._flat[name][: n * m].reshape(n, m)
