"""The sigmoid loss on a ring of devices under `shard_map`."""

from functools import partial

import jax
import jax.numpy as jnp

from siglip_jax.arguments import checked, vary_alike
from siglip_jax.cotangents import Residuals, pull_back, residuals
from siglip_jax.sigmoid import SigmoidPass, sigmoid_pass
from siglip_jax.tile_loop import grid
from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.types import Array, Float, Int


def ring_sigmoid_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    *,
    axis_name: str,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> Float[Array, ""]:
    """The sigmoid loss of the global batch from the shards of a mesh axis, equal on all devices.

        loss = shard_map(partial(ring_sigmoid_loss, axis_name="ring"),
                         in_specs=(P("ring"), P("ring"), P(), P()), out_specs=P())

    `jax.grad` may stand outside `shard_map`, with or without `check_vma`, and with t' and b the
    same on all devices. Shards are equal, as `shard_map` has it; `pairs` gets global indices.

    Each text shard travels once round with its gradients, in at least float32, one step behind
    it. The next texts are on their way while those here are worked on. Beside inputs and
    gradients a device holds two shards of texts, two of gradients and a tile of logits, and the
    program grows neither with n nor with the number of devices. The backward pass sends nothing
    but what the sums over t' and b need.

    Raises ValueError as `sigmoid_loss` does, and NameError outside of the axis.

    Source: arXiv:2303.15343, section 3.3; `siglip_ref.ring.sigmoid_loss`.
    """
    arguments = checked(pairs, zimg, ztxt, t_prime=t_prime, b=b)
    return _compiled(*arguments, axis_name, tile, pairs)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _compiled(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    axis_name: str,
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    rank = jax.lax.axis_index(axis_name)
    *arguments, _ = vary_alike(zimg, ztxt, t_prime, b, rank)
    # This sum is JAX's own: its transpose is the one that fits `check_vma`. So the cotangents of
    # the shares are equal on all devices, and each may scale the gradients of its own shards.
    return jax.lax.psum(_share(*arguments, axis_name, tile, pairs), axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _share(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    axis_name: str,
    tile: int,
    pairs: Pairs,
) -> Float[Array, ""]:
    """The pairs of the images of this device."""
    return _fwd(zimg, ztxt, t_prime, b, axis_name, tile, pairs)[0]


def _fwd(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    b: Float[Array, ""],
    axis_name: str,
    tile: int,
    pairs: Pairs,
) -> tuple[Float[Array, ""], Residuals]:
    rank, world_size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    (n, _), (m, _) = zimg.shape, ztxt.shape

    def shift(array: Array) -> Array:
        neighbours = [(source, (source + 1) % world_size) for source in range(world_size)]
        return jax.lax.ppermute(array, axis_name, neighbours)

    def against(held: Float[Array, "m d"], owner: Int[Array, ""]) -> SigmoidPass:
        rows, columns = rank * n + jnp.arange(n), owner * m + jnp.arange(m)
        pair_grid = grid(rows, columns, tile, pairs)
        return sigmoid_pass(zimg, held, t_prime, b, pair_grid, n * world_size)

    def ring_step(
        step: Int[Array, ""], carry: tuple[Array, SigmoidPass]
    ) -> tuple[Array, SigmoidPass]:
        held, done = carry
        coming, travelling = shift(held), shift(done.grads.dztxt)
        loss, grads = against(held, (rank - step) % world_size)
        sums = SigmoidLossCotangents(
            done.grads.dzimg + grads.dzimg,
            travelling + grads.dztxt,
            done.grads.dt_prime + grads.dt_prime,
            done.grads.db + grads.db,
        )
        return coming, SigmoidPass(done.loss + loss, sums)

    if world_size == 1:
        loss, grads = against(ztxt, rank)
    else:
        first = (shift(ztxt), against(ztxt, rank))
        _, (loss, grads) = jax.lax.fori_loop(1, world_size, ring_step, first)
        grads = grads._replace(dztxt=shift(grads.dztxt))
    return loss, residuals(grads, (zimg, ztxt, t_prime, b))


_share.defvjp(_fwd, lambda _axis_name, _tile, _pairs, res, dloss: pull_back(res, dloss))
