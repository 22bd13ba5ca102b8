"""The core's tiled sigmoid loss in Torch's in-place operations, on tiles that are used again.

With the default pairs a tile's logits cost no allocation, and one exponential each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents, pair_nll
from siglip_ref.precision import at_least_float32
from siglip_ref.tiles import tiles
from siglip_ref.types import Float, Int

TILE = 1024
"""Rows and columns of a tile: the fastest of 256 … 2048 for d = 768 on two AVX2 cores."""


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

    Beside inputs and outputs it holds two tiles and two tile x d matrices (14 MB at the tile of
    1024 and d = 768 in float32), and with other pairs what the core's formula needs for a tile.
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
    step = _step(zimg, ztxt, b, n if total is None else total, pairs, rows, columns)
    bias = (step.sign * b).expand(1, 1)
    dzimg, dztxt = (z.new_zeros(z.shape if gradients else 0, dtype=dtype) for z in (zimg, ztxt))
    sums = zimg.new_zeros(3, dtype=torch.float64)  # of thousands of tiles
    room = zimg.new_empty(2, min(tile, n) * min(tile, m), dtype=dtype)
    with torch.autocast(zimg.device.type, enabled=False):
        for text_tile in text_tiles:
            texts = ztxt[text_tile].to(dtype)
            scaled = texts * (step.sign * t)
            for image_tile in image_tiles:
                images = zimg[image_tile].to(dtype)
                block = room[:, : len(images) * len(texts)].view(2, len(images), len(texts))
                torch.addmm(bias, images, scaled.T, out=block[0])
                sums[0] += step(block, image_tile, text_tile, gradients=gradients)
                if gradients:
                    sums[2] += block[0].sum()
                    dzimg[image_tile].addmm_(block[0], scaled)
                    dztxt[text_tile].addmm_(block[0].T, images)
            if gradients:
                sums[1] += torch.mul(texts, dztxt[text_tile], out=scaled).sum()
                dztxt[text_tile] *= step.sign * t
    sums[1:] *= step.sign
    loss, dt, db = (x.to(dtype, copy=True) for x in sums)
    return LossAndGrads(loss, dzimg, dztxt, dt, db)


class _DiagonalStep:
    """Image i matches text i: the label of a pair is the sign of its logit.

    With the sign of t turned, a tile holds labels logits but for its piece of the diagonal, which
    is negated. So no pair's loss is a difference of two numbers, as it would be if the diagonal
    were first counted as mismatches and then put right.
    """

    sign = -1

    def __init__(self, b: Tensor, total: int, offset: int) -> None:
        """`offset`: index of the first image less that of the first text."""
        self._total, self._offset = total, offset
        self._minus_share = torch.full_like(b, -1 / total)

    def __call__(self, block: Tensor, images: slice, texts: slice, *, gradients: bool) -> Tensor:
        """The loss of a tile; block[0], sign logits, becomes the loss's derivative by it."""
        logits, exponential = block
        matches = logits.diagonal(self._offset + images.start - texts.start)
        matches.neg_()
        # softplus(-x) = log1p(exp(-|x|)) - min(x, 0)
        negative_part = torch.clamp(logits, max=0, out=exponential).sum()
        torch.abs(logits, out=exponential).neg_().exp_()
        if gradients:
            torch.ops.aten.log_sigmoid_backward.grad_input(
                self._minus_share, logits, exponential, grad_input=logits
            )
            matches.neg_()
        return (_sum_log1p(exponential.view(-1)) - negative_part) / self._total


def _sum_log1p(x: Tensor) -> Tensor:
    """Σ log1p(x) of numbers in [0, 1], which are written over, with one logarithm for up to 64.

    log1p(x) + log1p(y) = log1p(x + y + x y), and x + y + x y loses nothing where x and y are tiny,
    as the product (1 + x)(1 + y) would. Of 64 numbers it is below 2**64.
    """
    for _ in range(6):
        half, odd = divmod(len(x), 2)
        if odd:
            break
        x, y = x[:half], x[half:]
        y.addcmul_(x, y)
        x += y
    return x.log1p_().sum()


class _PairsStep:
    """Labels and weights of any kind: the core's own formula, tile by tile."""

    sign = 1

    def __init__(self, total: int, pairs: Pairs, rows: Tensor, columns: Tensor) -> None:
        self._total, self._pairs = total, pairs
        self._rows, self._columns = rows, columns

    def __call__(self, block: Tensor, images: slice, texts: slice, *, gradients: bool) -> Tensor:
        """The loss of a tile; block[0], sign logits, becomes the loss's derivative by it."""
        targets = self._pairs(self._rows[images], self._columns[texts])
        nll, dlogits = pair_nll(block[0], targets)
        if gradients:
            torch.div(dlogits, self._total, out=block[0])
        loss: Tensor = nll.sum() / self._total
        return loss


def _step(
    zimg: Tensor,
    ztxt: Tensor,
    b: Tensor,
    total: int,
    pairs: Pairs,
    rows: Tensor | None,
    columns: Tensor | None,
) -> _DiagonalStep | _PairsStep:
    if pairs is diagonal:
        starts = _start(zimg, rows), _start(ztxt, columns)
        if starts[0] is not None and starts[1] is not None:
            return _DiagonalStep(b, total, starts[0] - starts[1])
    return _PairsStep(total, pairs, indices(zimg, rows), indices(ztxt, columns))


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
