"""The softmax loss as a JAX function: gradients come from our two passes, not from a trace."""

from dataclasses import dataclass

from siglip_jax.arguments import checked
from siglip_jax.differentiable import Arrays
from siglip_jax.sigmoid import local
from siglip_jax.softmax_sums import (
    add_gradients,
    add_lines,
    cotangents,
    loss_of,
    no_gradients,
    no_lines,
)
from siglip_jax.targets import Opened, closed, opened
from siglip_jax.tile_loop import Grid
from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import indices
from siglip_ref.types import Array, Float


def softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> Float[Array, ""]:
    """`siglip_ref.losses.tiled_softmax_loss` for jit, grad, vmap and shard_map.

        loss = ½ [ (1/n) Σᵢ (logsumexpⱼ logitsᵢⱼ - logitsᵢᵢ)
                 + (1/m) Σⱼ (logsumexpᵢ logitsᵢⱼ - logitsⱼⱼ) ],   logits = exp(t') zimg ztxtᵀ

    Gradients, memory, the size of the program and errors are as with `sigmoid_loss`; the loss
    alone takes one matrix product a tile, with its gradients four.
    """
    arguments = checked(pairs, zimg, ztxt, t_prime=t_prime)
    rows, columns = indices(arguments[0], None), indices(arguments[1], None)
    program, constants = opened(pairs, rows, columns, tile)
    return local(SoftmaxPass(tile, program), arguments, constants)


@dataclass(frozen=True)
class SoftmaxPass:
    """The loss of a batch on one device."""

    tile: int
    pairs: Pairs | Opened

    def __call__(self, arguments: Arrays, constants: Arrays) -> tuple[Array, Arrays]:
        """See `Pass`."""
        zimg, ztxt, t_prime = arguments
        totals = zimg.shape[0], ztxt.shape[0]
        rows, columns = indices(zimg, None), indices(ztxt, None)
        grid = Grid(rows, columns, self.tile, closed(self.pairs, constants))
        lines = add_lines(no_lines(zimg, ztxt), zimg, ztxt, t_prime, grid)
        sums = add_gradients(no_gradients(zimg, ztxt), zimg, ztxt, t_prime, lines, grid, totals)
        return loss_of(lines, totals), cotangents(sums, zimg)
