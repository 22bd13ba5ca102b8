"""The sigmoid loss as a JAX function: gradients come from our one pass, not from a trace of it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from siglip_jax.arguments import checked, jax_array, vary_alike
from siglip_jax.cotangents import Residuals, pull_back, residuals
from siglip_jax.tile_loop import Grid, Tile, add_rows, grid, rows_of
from siglip_ref.losses import Pairs, diagonal, sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.types import Array, Float, Int


class SigmoidPass(NamedTuple):
    """The loss of some pairs and its gradients, all in at least float32."""

    loss: Float[Array, ""]
    grads: SigmoidLossCotangents


def sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> Float[Array, ""]:
    """`siglip_ref.losses.tiled_sigmoid_loss` for jit, grad, vmap and shard_map.

        loss = (1/n) Σᵢⱼ softplus(-labelsᵢⱼ (exp(t') ⟨zimgᵢ, ztxtⱼ⟩ + b))

    When it is differentiated, the forward pass yields the gradients with the loss, and the
    backward pass scales them by the cotangent of the loss. They stay in at least float32 until
    then. Beside inputs and gradients there is never more than a tile of logits, and the compiled
    program does not grow with n.

    Another function for `pairs` compiles anew, an equal one too.

    Raises ValueError as the core does, and TypeError for a float64 array with jax_enable_x64 off.
    """
    return _compiled(*checked(pairs, zimg, ztxt, t_prime=t_prime, b=b), tile, pairs)


def tiled_sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    tile: int = 1024,
    pairs: Pairs = diagonal,
    rows: Int[Array, " n"] | None = None,
    columns: Int[Array, " m"] | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    """The loss and its gradients at dloss = 1, as the core's function of this name gives them."""
    named = {"zimg": zimg, "ztxt": ztxt, "t_prime": t_prime, "b": b}
    check_embeddings(zimg, ztxt)
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    arguments = tuple(jax_array(name, x) for name, x in named.items())
    places = indices(arguments[0], rows), indices(arguments[1], columns)
    found: tuple[Array, SigmoidLossCotangents] = _tiled(
        *arguments, *places, tile, pairs, zimg.shape[0] if total is None else total
    )
    return found


@partial(jax.jit, static_argnums=(6, 7, 8))
def _tiled(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    rows: Int[Array, " n"],
    columns: Int[Array, " m"],
    tile: int,
    pairs: Pairs,
    total: int,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    zimg, ztxt, t_prime, b = vary_alike(zimg, ztxt, t_prime, b)
    pair_grid = grid(rows, columns, tile, pairs)
    loss, grads = sigmoid_pass(zimg, ztxt, t_prime, b, pair_grid, total)
    return loss, SigmoidLossCotangents(
        cast_like(grads.dzimg, zimg),
        cast_like(grads.dztxt, ztxt),
        cast_like(grads.dt_prime, t_prime),
        cast_like(grads.db, b),
    )


def sigmoid_pass(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    pair_grid: Grid,
    total: int,
) -> SigmoidPass:
    """The share of a grid of pairs in the loss of a batch of `total` images, and its gradients."""
    t_prime, b = at_least_float32(t_prime), at_least_float32(b)

    def step(done: SigmoidPass, tile: Tile) -> SigmoidPass:
        images = at_least_float32(rows_of(zimg, tile.row, pair_grid.images.size))
        texts = at_least_float32(rows_of(ztxt, tile.column, pair_grid.texts.size))
        loss, res = sigmoid_loss_fwd(
            images, texts, t_prime, b, pairs=lambda *_: tile.targets, total=total
        )
        part = sigmoid_loss_bwd(res, jnp.ones_like(loss))
        grads = SigmoidLossCotangents(
            add_rows(done.grads.dzimg, part.dzimg, tile.row),
            add_rows(done.grads.dztxt, part.dztxt, tile.column),
            done.grads.dt_prime + part.dt_prime,
            done.grads.db + part.db,
        )
        return SigmoidPass(done.loss + loss, grads)

    nothing = SigmoidLossCotangents(
        *(jnp.zeros_like(at_least_float32(x)) for x in (zimg, ztxt, t_prime, b))
    )
    with jax.default_matmul_precision("highest"):  # float32 is float32 on any device
        return pair_grid.fold(step, SigmoidPass(jnp.zeros_like(nothing.dzimg[0, 0]), nothing))


@partial(jax.jit, static_argnums=(4, 5))
def _compiled(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    return _sigmoid_loss(*vary_alike(zimg, ztxt, t_prime, b), tile, pairs)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    return _fwd(zimg, ztxt, t_prime, b, tile, pairs)[0]


def _fwd(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    tile: int,
    pairs: Pairs,
) -> tuple[Float[Array, ""], Residuals]:
    pair_grid = grid(indices(zimg, None), indices(ztxt, None), tile, pairs)
    loss, grads = sigmoid_pass(zimg, ztxt, t_prime, b, pair_grid, zimg.shape[0])
    return loss, residuals(grads, (zimg, ztxt, t_prime, b))


_sigmoid_loss.defvjp(_fwd, lambda _tile, _pairs, res, dloss: pull_back(res, dloss))
