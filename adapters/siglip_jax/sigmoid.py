"""The sigmoid loss as a JAX function: gradients come from our one pass, not from a trace of it."""

from dataclasses import dataclass
from functools import partial

import jax

from siglip_jax.arguments import checked, jax_array, vary_alike
from siglip_jax.differentiable import Arrays, Pass, differentiable
from siglip_jax.sigmoid_sums import add_pairs, finished, no_pairs
from siglip_jax.targets import Opened, closed, opened
from siglip_jax.tile_loop import Grid
from siglip_ref.losses import Pairs, diagonal
from siglip_ref.losses.blocks import check_embeddings, check_scalar, indices
from siglip_ref.losses.sigmoid import SigmoidLossCotangents
from siglip_ref.precision import cast_like
from siglip_ref.types import Array, Float, Int


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

    Labels and weights of `pairs` are constants: they have no gradient. Outside of jit another
    function for `pairs` compiles anew, an equal one too.

    Raises ValueError as the core does, and TypeError for a float64 array with jax_enable_x64 off.
    """
    arguments = checked(pairs, zimg, ztxt, t_prime=t_prime, b=b)
    rows, columns = indices(arguments[0], None), indices(arguments[1], None)
    program, constants = opened(pairs, rows, columns, tile)
    return local(SigmoidPass(tile, program), arguments, constants)


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
    program, constants = opened(pairs, *places, tile)
    total = zimg.shape[0] if total is None else total
    found: tuple[Array, SigmoidLossCotangents] = _tiled(
        program, tile, total, arguments, places, constants
    )
    return found


@dataclass(frozen=True)
class SigmoidPass:
    """The loss of a batch on one device."""

    tile: int
    pairs: Pairs | Opened

    def __call__(self, arguments: Arrays, constants: Arrays) -> tuple[Array, Arrays]:
        """See `Pass`."""
        zimg, ztxt, t_prime, b = arguments
        rows, columns = indices(zimg, None), indices(ztxt, None)
        grid = Grid(rows, columns, self.tile, closed(self.pairs, constants))
        sums = add_pairs(no_pairs(zimg, ztxt), zimg, ztxt, t_prime, b, grid)
        return finished(sums, zimg, zimg.shape[0])


@partial(jax.jit, static_argnums=0)
def local(loss_pass: Pass, arguments: Arrays, constants: Arrays) -> Float[Array, ""]:
    """The loss of one device, compiled, to be differentiated."""
    return differentiable(loss_pass, vary_alike(*arguments), constants)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _tiled(
    pairs: Pairs | Opened,
    tile: int,
    total: int,
    arguments: Arrays,
    places: tuple[Int[Array, " n"], Int[Array, " m"]],
    constants: Arrays,
) -> tuple[Float[Array, ""], SigmoidLossCotangents]:
    zimg, ztxt, t_prime, b = vary_alike(*arguments)
    grid = Grid(*places, tile, closed(pairs, constants))
    sums = add_pairs(no_pairs(zimg, ztxt), zimg, ztxt, t_prime, b, grid)
    loss, grads = finished(sums, zimg, total)
    return loss, SigmoidLossCotangents(
        *(cast_like(grad, x) for grad, x in zip(grads, arguments, strict=True))
    )
