"""Losses as Torch functions, with the core's gradients in place of a recorded graph.

The gradients are formed along with the loss, and the backward pass does nothing but scale them:
nothing is kept for it of any pair of image and text.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from siglip_ref.losses import Pairs, diagonal, tiled_softmax_loss
from siglip_ref.losses.blocks import check_embeddings, check_scalar
from siglip_ref.losses.pairs import check_counts
from siglip_ref.types import Float
from siglip_torch.tile_loop import TILE, loss_and_grads

Fn = TypeVar("Fn", bound=Callable[..., Any])

Compute = Callable[..., tuple[Tensor, ...]]
"""Tensors to the loss and its gradients by each of them at dloss = 1."""


def sigmoid_loss(
    zimg: Float[Tensor, "n d"],
    ztxt: Float[Tensor, "m d"],
    t_prime: Float[Tensor, ""],
    b: Float[Tensor, ""],
    *,
    pairs: Pairs = diagonal,
    tile: int = TILE,
) -> Float[Tensor, ""]:
    """The core's sigmoid loss, differentiable once by its four tensors.

    It computes in at least float32, also under autocast, and gradients come in the dtypes of the
    tensors. `torch.compile` sees one operator if `pairs` is left as it is, and else breaks its
    graph here. `torch.func.grad` works; `vmap` and second derivatives raise RuntimeError, forward
    mode NotImplementedError.

    Raises ValueError as `siglip_ref.losses.tiled_sigmoid_loss` does, and unless there are as many
    images as texts or `pairs` is given; TypeError as `siglip_torch.tiled_sigmoid_loss` does.
    """
    check_scalar("t_prime", t_prime)
    check_scalar("b", b)
    return sigmoid_loss_at(zimg, ztxt, _wide(t_prime).exp(), b, pairs=pairs, tile=tile)


def sigmoid_loss_at(
    zimg: Float[Tensor, "n d"],
    ztxt: Float[Tensor, "m d"],
    t: Float[Tensor, ""],
    b: Float[Tensor, ""],
    *,
    pairs: Pairs = diagonal,
    tile: int = TILE,
) -> Float[Tensor, ""]:
    """`sigmoid_loss` by the temperature t = exp(t') itself."""
    check_embeddings(zimg, ztxt)
    check_counts(pairs, zimg, ztxt)
    if pairs is diagonal:
        compute: Compute = partial(_diagonal_sigmoid_loss, tile=tile)
        apply = with_gradients
    else:
        compute = partial(loss_and_grads, pairs=pairs, tile=tile)
        apply = outside_of_graphs(with_gradients)
    return apply(
        partial(compute, gradients=True), partial(compute, gradients=False), zimg, ztxt, t, b
    )


def softmax_loss(
    zimg: Float[Tensor, "n d"],
    ztxt: Float[Tensor, "m d"],
    t_prime: Float[Tensor, ""],
    *,
    pairs: Pairs = diagonal,
    tile: int = TILE,
) -> Float[Tensor, ""]:
    """The core's softmax loss in tiles, differentiable once by its three tensors.

    What `sigmoid_loss` says holds here too. The gradients are formed even if nobody asks for them.

    Raises ValueError as `siglip_ref.losses.tiled_softmax_loss` does, and unless there are as many
    images as texts or `pairs` is given.
    """
    check_scalar("t_prime", t_prime)
    check_embeddings(zimg, ztxt)
    check_counts(pairs, zimg, ztxt)
    if pairs is diagonal:
        compute: Compute = partial(_diagonal_softmax_loss, tile=tile)
        apply = with_gradients
    else:
        compute = partial(_softmax_loss_and_grads, pairs=pairs, tile=tile)
        apply = outside_of_graphs(with_gradients)
    return apply(compute, compute, zimg, ztxt, t_prime)


def with_gradients(compute: Compute, without: Compute, *inputs: Tensor) -> Float[Tensor, ""]:
    """The loss of `compute`, differentiable once by the inputs through what it returns with it.

    If nobody asks for a gradient it is that of `without`, which may leave them empty.
    """
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if not asked and torch.compiler.is_compiling():
        return without(*inputs)[0]
    # Also if nobody asks: it refuses vmap and forward mode, which would miss the derivatives.
    found = _WithGradients.apply(compute if asked else without, *inputs)  # type: ignore[no-untyped-call]
    loss: Tensor = found[0]
    return loss


def outside_of_graphs(fn: Fn) -> Fn:
    """`fn`, at which `torch.compile` ends one graph and then begins another.

    Asked for where it is called: as a decorator it would import the compiler.
    """
    if not torch.compiler.is_compiling():
        return fn
    disabled: Fn = torch.compiler.disable(fn)  # type: ignore[no-untyped-call]
    return disabled


class _WithGradients(torch.autograd.Function):
    """(loss, *gradients) of a function, of which the loss is differentiable."""

    @staticmethod
    def forward(compute: Compute, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(compute(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.homes = [(x.device, x.dtype) for x in inputs[1:]]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, dloss: Tensor | None, *dgradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # Compiled, these are never None, and second derivatives are refused by Torch itself.
        if not torch.compiler.is_compiling() and any(x is not None for x in dgradients):
            raise RuntimeError(
                "the losses of siglip_torch can be differentiated once, got a derivative of their "
                "gradients to compute"
            )
        if dloss is None:
            return (None,) * (1 + len(ctx.homes))
        scaled = (gradient * dloss for gradient in ctx.saved_tensors)
        return (None, *(x.to(*home) for x, home in zip(scaled, ctx.homes, strict=True)))


@torch.library.custom_op("siglip_torch::diagonal_sigmoid_loss", mutates_args=())
def _diagonal_sigmoid_loss(
    zimg: Tensor, ztxt: Tensor, t: Tensor, b: Tensor, tile: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return loss_and_grads(zimg, ztxt, t, b, tile=tile, gradients=gradients)


@_diagonal_sigmoid_loss.register_fake
def _(
    zimg: Tensor, ztxt: Tensor, _t: Tensor, _b: Tensor, _tile: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(zimg.dtype, torch.float32)
    dzimg, dztxt = (z.new_empty(z.shape if gradients else 0, dtype=dtype) for z in (zimg, ztxt))
    loss, dt, db = (zimg.new_empty((), dtype=dtype) for _ in range(3))
    return loss, dzimg, dztxt, dt, db


@torch.library.custom_op("siglip_torch::diagonal_softmax_loss", mutates_args=())
def _diagonal_softmax_loss(
    zimg: Tensor, ztxt: Tensor, t_prime: Tensor, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _softmax_loss_and_grads(zimg, ztxt, t_prime, pairs=diagonal, tile=tile)


@_diagonal_softmax_loss.register_fake
def _(
    zimg: Tensor, ztxt: Tensor, t_prime: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dzimg, dztxt, dt_prime, loss = (
        x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
        for x in (zimg, ztxt, t_prime, t_prime)
    )
    return loss, dzimg, dztxt, dt_prime


@torch.no_grad()
def _softmax_loss_and_grads(
    zimg: Tensor, ztxt: Tensor, t_prime: Tensor, *, pairs: Pairs, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = (_wide(x) for x in (zimg, ztxt, t_prime))
    with torch.autocast(zimg.device.type, enabled=False):
        loss, grads = tiled_softmax_loss(*wide, pairs=pairs, tile=tile)
    return loss, *(grad.contiguous() for grad in grads)  # as the operator's fake says


def _wide(x: Tensor) -> Tensor:
    """`x` in at least float32, in a form that `torch.compile` can trace."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
