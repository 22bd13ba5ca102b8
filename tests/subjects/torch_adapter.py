"""The faces of siglip_torch as subjects of the kit, under Torch's autograd where they have one.

The tiles are of 3, so that most cases have several, where the case itself names no size.
"""

from functools import partial

import numpy as np

from backends import library
from siglip_ref.losses import from_matrix
from siglip_ref.tree import flatten
from siglip_spec import Subject, autodiff
from siglip_spec.operations.encoders import model_config
from subjects.gloo import Ranks

RANKS = Ranks(5)
"""As many as in the largest ring of the vectors."""

TILE = 3


def tile_loop(dtype: str) -> Subject:
    """`tiled_sigmoid_loss`, which returns its gradients."""
    library("torch")
    from siglip_torch import tiled_sigmoid_loss

    subject = Subject(
        "siglip_torch.tiled_sigmoid_loss",
        dtype=dtype,
        from_numpy=partial(autodiff.torch.from_numpy, dtype=dtype),
        to_numpy=autodiff.torch.to_numpy,
    )

    def pairwise(labels, weights, **inputs):
        return tiled_sigmoid_loss(**inputs, tile=TILE, pairs=from_matrix(labels, weights))

    def provide(operation, function):
        @subject.provides(operation)
        def loss(**inputs):
            return function(**inputs)[0]

        @subject.provides(f"{operation}_bwd")
        def gradients(dloss, **inputs):
            return tuple(dloss * gradient for gradient in function(**inputs)[1])

    provide("tiled_sigmoid_loss", tiled_sigmoid_loss)
    provide("pairwise_sigmoid_loss", pairwise)
    return subject


def functions(dtype: str) -> Subject:
    """`sigmoid_loss` and `softmax_loss`, differentiable."""
    library("torch")
    import siglip_torch

    subject = Subject("siglip_torch functions", dtype=dtype, vjp=autodiff.torch)
    subject.provides("sigmoid_loss")(partial(_in_tiles, siglip_torch.sigmoid_loss))
    subject.provides("softmax_loss")(partial(_in_tiles, siglip_torch.softmax_loss))

    @subject.provides("tiled_sigmoid_loss")
    def tiled_sigmoid_loss(zimg, ztxt, t_prime, b, tile):
        return siglip_torch.sigmoid_loss(zimg, ztxt, t_prime, b, tile=tile)

    @subject.provides("pairwise_sigmoid_loss")
    def pairwise_sigmoid_loss(zimg, ztxt, t_prime, b, labels, weights):
        pairs = from_matrix(labels, weights)
        return siglip_torch.sigmoid_loss(zimg, ztxt, t_prime, b, pairs=pairs, tile=TILE)

    return subject


def _in_tiles(loss, *inputs):
    return loss(*inputs, tile=TILE)


def module(dtype: str) -> Subject:
    """`SigLipLoss` in one process."""
    torch = library("torch")
    from siglip_torch import SigLipLoss

    subject = Subject("siglip_torch.SigLipLoss", dtype=dtype, vjp=autodiff.torch)

    @subject.provides("sigmoid_loss")
    def sigmoid_loss(zimg, ztxt, t_prime, b):
        t = t_prime.to(torch.promote_types(t_prime.dtype, torch.float32)).exp()
        return SigLipLoss(chunk_size=TILE)(zimg, ztxt, t, b)

    return subject


def model(dtype: str) -> Subject:
    """`SiglipModel` with `sigmoid_loss`: the case's parameters stand in for its own."""
    torch = library("torch")
    from siglip_torch import SiglipModel, sigmoid_loss

    subject = Subject("siglip_torch.SiglipModel", dtype=dtype, vjp=autodiff.torch)

    @subject.provides("siglip")
    def siglip(images, tokens, params, **attrs):
        module = SiglipModel(model_config(params, images, tokens, attrs))
        leaves = {path.replace("/", "."): leaf for path, leaf in flatten(params).items()}
        zimg, ztxt = torch.func.functional_call(module, leaves, (images, tokens))
        return sigmoid_loss(zimg, ztxt, params["t_prime"], params["b"]), zimg, ztxt

    return subject


def ring(dtype: str) -> Subject:
    """`SigLipLoss` on gloo ranks, under the mean that DistributedDataParallel takes."""
    library("torch")
    subject = Subject("siglip_torch.SigLipLoss, gloo ranks", dtype=dtype)

    @subject.provides("ring_sigmoid_loss")
    def loss(zimg, ztxt, t_prime, b):
        return np.mean([value for value, _ in _over_ranks(zimg, ztxt, t_prime, b)])

    @subject.provides("ring_sigmoid_loss_bwd")
    def gradients(zimg, ztxt, t_prime, b, dloss):
        found = [grads for _, grads in _over_ranks(zimg, ztxt, t_prime, b)]
        dzimg, dztxt, dt_prime, db = zip(*found, strict=True)
        mean = dloss / len(found)
        return {
            "dzimg": [dz * mean for dz in dzimg],
            "dztxt": [dz * mean for dz in dztxt],
            "dt_prime": sum(dt_prime) * mean,
            "db": sum(db) * mean,
        }

    return subject


def _over_ranks(zimg, ztxt, t_prime, b):
    parts = [(*shards, t_prime, b) for shards in zip(zimg, ztxt, strict=True)]
    return RANKS.run("subjects.torch_adapter:on_a_rank", parts)


def on_a_rank(rank, world_size, *inputs):
    """The loss of this rank and its gradients, as autograd leaves them here."""
    import torch

    from siglip_torch import SigLipLoss

    leaves = [torch.from_numpy(np.array(x)).requires_grad_() for x in inputs]
    zimg, ztxt, t_prime, b = leaves
    loss = SigLipLoss(rank=rank, world_size=world_size, chunk_size=TILE)
    value = loss(zimg, ztxt, t_prime.exp(), b)
    value.backward()
    return value.detach().numpy(), [leaf.grad.numpy() for leaf in leaves]
