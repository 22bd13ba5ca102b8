"""The losses on a ring of devices under `shard_map`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from siglip_jax.arguments import checked, vary_alike
from siglip_jax.differentiable import Arrays, Pass, differentiable
from siglip_jax.sigmoid_sums import ImageSums, SigmoidSums, add_pairs, finished, no_pairs
from siglip_jax.softmax_sums import (
    Lines,
    SoftmaxSums,
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
from siglip_ref.losses.softmax import LineStatistics, merge_statistics
from siglip_ref.types import Array, Count, Float, Int

State = TypeVar("State")
Held = TypeVar("Held")
Found = TypeVar("Found")


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
    program, constants = _opened(pairs, arguments, tile)
    return _on_a_ring(RingSigmoidPass(axis_name, tile, program), axis_name, arguments, constants)


def ring_softmax_loss(
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    t_prime: Float[Array, ""],
    *,
    axis_name: str,
    tile: int = 1024,
    pairs: Pairs = diagonal,
) -> Float[Array, ""]:
    """The softmax loss of the global batch from the shards of a mesh axis, equal on all devices.

    Called, and differentiated, as `ring_sigmoid_loss`. It takes two rotations: in the first the
    running log-sum-exp of the texts travels behind them, in the second their gradient does.

    Raises ValueError as `softmax_loss` does, and NameError outside of the axis.

    Source: `siglip_ref.ring.softmax_loss`.
    """
    arguments = checked(pairs, zimg, ztxt, t_prime=t_prime)
    program, constants = _opened(pairs, arguments, tile)
    return _on_a_ring(RingSoftmaxPass(axis_name, tile, program), axis_name, arguments, constants)


@dataclass(frozen=True)
class RingSigmoidPass:
    """This device's images' share of the loss, and the gradients of its shards."""

    axis_name: str
    tile: int
    pairs: Pairs | Opened

    def __call__(self, arguments: Arrays, constants: Arrays) -> tuple[Array, Arrays]:
        """See `Pass`."""
        zimg, ztxt, t_prime, b = arguments
        n, m = zimg.shape[0], ztxt.shape[0]
        grids = Grids(self.axis_name, n, m, self.tile, closed(self.pairs, constants))
        no_images, no_dztxt = no_pairs(zimg, ztxt)

        def visit(
            images: ImageSums, held: Float[Array, "m d"], owner: Count
        ) -> tuple[ImageSums, Float[Array, "m d"]]:
            sums = SigmoidSums(images, no_dztxt)
            images, dztxt = add_pairs(sums, zimg, held, t_prime, b, grids.of(owner))
            return images, dztxt

        sums = rotation(self.axis_name, visit, jnp.add, no_images, ztxt)
        return finished(SigmoidSums(*sums), zimg, n * grids.world_size)


@dataclass(frozen=True)
class RingSoftmaxPass:
    """This device's lines' share of the loss, and the gradients of its shards."""

    axis_name: str
    tile: int
    pairs: Pairs | Opened

    def __call__(self, arguments: Arrays, constants: Arrays) -> tuple[Array, Arrays]:
        """See `Pass`."""
        zimg, ztxt, t_prime = arguments
        n, m = zimg.shape[0], ztxt.shape[0]
        grids = Grids(self.axis_name, n, m, self.tile, closed(self.pairs, constants))
        totals = n * grids.world_size, m * grids.world_size
        no_images, no_texts = no_lines(zimg, ztxt)
        no_dzimg, no_dztxt = no_gradients(zimg, ztxt)

        def collect(
            images: LineStatistics, held: Float[Array, "m d"], owner: Count
        ) -> tuple[LineStatistics, LineStatistics]:
            lines = Lines(images, no_texts)
            images, texts = add_lines(lines, zimg, held, t_prime, grids.of(owner))
            return images, texts

        def visit(
            dzimg: Float[Array, "n d"], held: tuple[Array, LineStatistics], owner: Count
        ) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
            sums, lines = SoftmaxSums(dzimg, no_dztxt), Lines(images, held[1])
            dzimg, dztxt = add_gradients(
                sums, zimg, held[0], t_prime, lines, grids.of(owner), totals
            )
            return dzimg, dztxt

        images, texts = rotation(self.axis_name, collect, merge_statistics, no_images, ztxt)
        sums = rotation(self.axis_name, visit, jnp.add, no_dzimg, (ztxt, texts))
        return loss_of(Lines(images, texts), totals), cotangents(SoftmaxSums(*sums), zimg)


class Grids(NamedTuple):
    """The images of this device against the texts of any: n and m on each."""

    axis_name: str
    n: int
    m: int
    tile: int
    pairs: Pairs

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return int(jax.lax.axis_size(self.axis_name))

    def of(self, owner: Count) -> Grid:
        """Those with the texts of a rank."""
        rows = jax.lax.axis_index(self.axis_name) * self.n + jnp.arange(self.n)
        return Grid(rows, owner * self.m + jnp.arange(self.m), self.tile, self.pairs)


def rotation(
    axis_name: str,
    visit: Callable[[State, Held, Count], tuple[State, Found]],
    merge: Callable[[Found, Found], Found],
    state: State,
    held: Held,
) -> tuple[State, Found]:
    """The state after what every device holds came by, and the sum of what all found for it.

    `siglip_ref.ring.rotation` as a loop: unrolled, XLA moves what is held as soon as it can, and
    a device would hold what came by in all steps at once.
    """
    rank, world_size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    neighbours = [(source, (source + 1) % world_size) for source in range(world_size)]
    shift = partial(jax.lax.ppermute, axis_name=axis_name, perm=neighbours)

    state, found = visit(state, held, rank)
    if world_size == 1:
        return state, found

    def ring_step(
        step: Int[Array, ""], carry: tuple[Held, State, Found]
    ) -> tuple[Held, State, Found]:
        held, state, sums = carry
        coming, travelling = shift(held), shift(sums)
        state, found = visit(state, held, (rank - step) % world_size)
        return coming, state, merge(travelling, found)

    carry = (shift(held), state, found)
    _, state, found = jax.lax.fori_loop(1, world_size, ring_step, carry)
    return state, shift(found)


def _opened(pairs: Pairs, arguments: Arrays, tile: int) -> tuple[Pairs | Opened, Arrays]:
    zimg, ztxt, *_ = arguments
    return opened(pairs, jnp.arange(zimg.shape[0]), jnp.arange(ztxt.shape[0]), tile)


@partial(jax.jit, static_argnums=(0, 1))
def _on_a_ring(
    loss_pass: Pass, axis_name: str, arguments: Arrays, constants: Arrays
) -> Float[Array, ""]:
    *varying, _ = vary_alike(*arguments, jax.lax.axis_index(axis_name))
    # This sum is JAX's own: its transpose is the one that fits `check_vma`. So the cotangents of
    # the shares are equal on all devices, and each may scale the gradients of its own shards.
    return jax.lax.psum(differentiable(loss_pass, tuple(varying), constants), axis_name)
