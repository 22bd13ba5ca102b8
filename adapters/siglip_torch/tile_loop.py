"""The core's tiled sigmoid loss in Torch's in-place operations, on tiles that are used again.

With the default pairs a tile's logits cost no allocation and, on the host, one exponential each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents, pair_nll
from siglip_ref.precision import at_least_float32
from siglip_ref.tiles import tiles
from siglip_ref.types import Float, Int

TILE = 1024
"""Rows and columns of a tile: the fastest of 256 … 2048 for d = 768 on two AVX2 cores."""

STRIP = 2**19
"""Pairs of a tile worked on at a time on the host, so that the steps between stay in the cache."""


class LossAndGrads(NamedTuple):
    """The sigmoid loss and its gradients at dloss = 1, in at least float32.

    `dt` is the derivative by the temperature t = exp(t') itself. Where no gradients were asked for
    they are empty.
    """

    loss: Float[Tensor, ""]
    dzimg: Float[Tensor, "n d"]
    dztxt: Float[Tensor, "m d"]
    dt: Float[Tensor, ""]
    db: Float[Tensor, ""]


def tiled_sigmoid_loss(
    zimg: Float[Tensor, "n d"],
    ztxt: Float[Tensor, "m d"],
    t_prime: Float[Tensor, ""],
    b: Float[Tensor, ""],
    *,
    tile: int = TILE,
    pairs: Pairs = diagonal,
    rows: Int[Tensor, " n"] | None = None,
    columns: Int[Tensor, " m"] | None = None,
    total: int | None = None,
) -> tuple[Float[Tensor, ""], SigmoidLossCotangents]:
    """The core's `tiled_sigmoid_loss`: the same arguments, results and errors, but faster.

    Beside inputs and outputs it holds a tile, a strip and a half of it and two tile x d matrices
    (13 MB at the tile of 1024 and d = 768 in float32), two more strips where most mismatches are
    taken for matches, and with other pairs what the core's formula needs for a tile.
    Gradients of 16-bit embeddings are summed in float32 and rounded once, at the price of float32
    copies of both gradients. It waits for a CUDA device only to look at `rows` and `columns`, if
    they are given.

    Raises ValueError as the core does, and TypeError on embeddings that are not both of one
    floating dtype, or both narrower than float32.
    """
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    with torch.no_grad():
        t = at_least_float32(t_prime).exp()
        found = loss_and_grads(
            zimg, ztxt, t, b, tile=tile, pairs=pairs, rows=rows, columns=columns, total=total
        )
        scalar = torch.promote_types(torch.promote_types(t_prime.dtype, b.dtype), torch.float32)
        dt_prime = found.dt * t.to(found.dt)
    return found.loss.to(torch.promote_types(scalar, found.loss.dtype)), SigmoidLossCotangents(
        found.dzimg.to(zimg), found.dztxt.to(ztxt), dt_prime.to(t_prime), found.db.to(b)
    )


@torch.no_grad()
def loss_and_grads(
    zimg: Float[Tensor, "n d"],
    ztxt: Float[Tensor, "m d"],
    t: Float[Tensor, ""],
    b: Float[Tensor, ""],
    *,
    tile: int = TILE,
    pairs: Pairs = diagonal,
    rows: Int[Tensor, " n"] | None = None,
    columns: Int[Tensor, " m"] | None = None,
    total: int | None = None,
    gradients: bool = True,
) -> LossAndGrads:
    """The loss at a temperature of any sign, with its gradients or without.

        logits = t zimg ztxtᵀ + b
        loss   = (1/total) Σᵢⱼ softplus(-labelsᵢⱼ logitsᵢⱼ)

    Raises ValueError and TypeError as `tiled_sigmoid_loss` does.
    """
    dtype = _computing_dtype(zimg, ztxt)
    n, m = zimg.shape[0], ztxt.shape[0]
    image_tiles, text_tiles = list(tiles("tile", n, tile)), tiles("tile", m, tile)
    t, b = t.to(zimg.device, dtype), b.to(zimg.device, dtype)
    room = zimg.new_empty(min(tile, n) * min(tile, m), dtype=dtype)
    step = _step(zimg, ztxt, pairs, rows, columns)
    share = 1 / (n if total is None else total)
    dzimg, dztxt = (z.new_empty(z.shape if gradients else 0, dtype=dtype) for z in (zimg, ztxt))
    sums = zimg.new_zeros(3, dtype=torch.float64)  # of thousands of tiles
    with torch.autocast(zimg.device.type, enabled=False):
        for text_tile in text_tiles:
            texts = ztxt[text_tile].to(dtype)
            scaled = texts * t
            for image_tile in image_tiles:
                images = zimg[image_tile].to(dtype)
                shape = len(images), len(texts)
                dlogits = room[: math.prod(shape)].view(shape)
                torch.mm(images, scaled.T, out=dlogits)
                sums[::2] += step(dlogits, b, image_tile, text_tile)
                if gradients:
                    dzimg[image_tile].addmm_(
                        dlogits, scaled, beta=int(text_tile.start > 0), alpha=share
                    )
                    dztxt[text_tile].addmm_(
                        dlogits.T, images, beta=int(image_tile.start > 0), alpha=share
                    )
            if gradients:
                sums[1] += torch.mul(texts, dztxt[text_tile], out=scaled).sum()
                dztxt[text_tile] *= t
    sums[::2] *= share
    loss, dt, db = (x.to(dtype, copy=True) for x in sums)
    return LossAndGrads(loss, dzimg, dztxt, dt, db)


class _DiagonalStep:
    """Image i matches text i and loses softplus(-logit), any other pair softplus(logit).

    While the others are worked on, a match is one of them with a logit of -∞, which loses nothing.
    """

    def __init__(self, offset: int) -> None:
        """`offset`: index of the first image less that of the first text."""
        self._offset = offset
        self._room = torch.empty(0)

    def __call__(self, block: Tensor, b: Tensor, images: slice, texts: slice) -> Tensor:
        """The loss of a tile and Σ dlogits; `block`, the logits less b, becomes dlogits."""
        place = self._offset + images.start - texts.start
        matches = block.diagonal(place)
        negative = -(matches + b)
        matches.fill_(-math.inf)
        loss = _softplus(negative).sum(dtype=torch.float64)
        dmatches = negative.sigmoid_().neg_()
        db = dmatches.sum(dtype=torch.float64)
        for strip in torch.split(block, _rows_of_a_strip(block)):
            logits, spare = self._room_for(strip)
            torch.add(strip, b, out=logits)
            torch.sigmoid(logits, out=strip)
            loss += _sum_softplus(logits, strip, spare)
            db += strip.sum()
        block.diagonal(place).copy_(dmatches)
        return torch.stack((loss, db))

    def _room_for(self, strip: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for its logits, and for half as many numbers."""
        size = strip.numel()
        if len(self._room) < size + size // 2:
            self._room = strip.new_empty(size + size // 2)
        return self._room[:size].view(strip.shape), self._room[size:]


def _rows_of_a_strip(block: Tensor) -> int:
    return max(1, STRIP // block.shape[1]) if block.device.type == "cpu" else len(block)


def _sum_softplus(x: Tensor, sigmoid: Tensor, spare: Tensor) -> Tensor:
    """Σ softplus(x), on the host with one logarithm for up to 32 numbers; `spare` is written over.

    softplus(x) = -log1p(-σ(x)), and where p and q are probabilities

        log1p(-p) + log1p(-q) = log1p(-(p + q - p q)),

    which loses nothing where both are tiny, as the product (1 - p) (1 - q) would. Where what comes
    of 32 numbers is close to 1 digits are lost, and softplus is formed of each.
    """
    if x.device.type != "cpu":  # which would have to be waited for
        return _softplus(x).sum()
    any_of, one = sigmoid.view(-1), x.new_ones(())
    for _ in range(5):
        half, odd = divmod(len(any_of), 2)
        if odd:
            break
        p, q = any_of[:half], any_of[half:]
        # The end of `spare` is q from the second time on. What lerp gives is q + p (1 - q).
        any_of = torch.lerp(q, one, p, out=spare[-half:])
    rest = x.new_zeros(())
    if not any_of.max() <= 0.9:
        lost = ~(any_of <= 0.9)
        rest = _softplus(x.view(-1, len(any_of))[:, lost]).sum()
        any_of = any_of[~lost]
    return rest - any_of.neg().log1p_().sum()


def _softplus(x: Tensor) -> Tensor:
    # Above 40, where it gives x, exp(-x) is less than what float64 rounds off.
    out: Tensor = softplus(x, threshold=40)
    return out


class _PairsStep:
    """Labels and weights of any kind: the core's own formula, tile by tile."""

    def __init__(self, pairs: Pairs, rows: Tensor, columns: Tensor) -> None:
        self._pairs, self._rows, self._columns = pairs, rows, columns

    def __call__(self, block: Tensor, b: Tensor, images: slice, texts: slice) -> Tensor:
        """The loss of a tile and Σ dlogits; `block`, the logits less b, becomes dlogits."""
        pairs = self._pairs(self._rows[images], self._columns[texts])
        nll, dlogits = pair_nll(block.add_(b), pairs)
        block.copy_(dlogits)
        return torch.stack((nll.sum(), block.sum()))


def _step(
    zimg: Tensor, ztxt: Tensor, pairs: Pairs, rows: Tensor | None, columns: Tensor | None
) -> _DiagonalStep | _PairsStep:
    if pairs is diagonal:
        starts = _start(zimg, rows), _start(ztxt, columns)
        if starts[0] is not None and starts[1] is not None:
            return _DiagonalStep(starts[0] - starts[1])
    return _PairsStep(pairs, indices(zimg, rows), indices(ztxt, columns))


def _start(z: Tensor, given: Tensor | None) -> int | None:
    """The first index, if they are consecutive."""
    if given is None:
        return 0
    first = indices(z, given)[0]
    consecutive = torch.equal(given - first, torch.arange(len(z), device=given.device))
    return int(first) if consecutive else None


def _computing_dtype(zimg: Tensor, ztxt: Tensor) -> torch.dtype:
    check_embeddings(zimg, ztxt)
    dtypes = {
        torch.promote_types(z.dtype, torch.float32) for z in (zimg, ztxt) if z.is_floating_point()
    }
    if len(dtypes) != 1 or not zimg.is_floating_point() or not ztxt.is_floating_point():
        raise TypeError(
            "zimg and ztxt must be floating-point tensors that are computed in one precision, "
            f"got {zimg.dtype} and {ztxt.dtype}"
        )
    return dtypes.pop()
