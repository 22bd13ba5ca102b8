"""The operations of the profile `ring`, in lock step: all ranks of a ring in one loop.

Rank r holds a shard of the images and one of the texts. In every ring step each rank works on its
images and the texts that it holds, then passes those, with what travels along, to rank r + 1.
"""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any, TypeVar

from array_api_compat import array_namespace, device

from siglip_ref.losses.pairs import diagonal
from siglip_ref.losses.sigmoid import sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_ref.losses.softmax import (
    line_statistics,
    lines_loss,
    merge_statistics,
    softmax_dlogits,
)
from siglip_ref.optim import clip_by_global_norm
from siglip_ref.primitives import scaled_cosine_bwd, scaled_cosine_fwd
from siglip_ref.tree import tree_map
from siglip_ref.types import Array, Tree
from siglip_spec.operations.operation import Answer, Operation, answer

T = TypeVar("T")


def _shift(held: list[T]) -> list[T]:
    """What each rank holds after one hop: rank r receives from rank r - 1."""
    return [held[rank - 1] for rank in range(len(held))]


def _shards(parts: dict[str, Array]) -> list[Array]:
    """The shards in the order of their ranks."""
    return [parts[str(rank)] for rank in range(len(parts))]


def _by_rank(parts: list[Tree]) -> dict[str, Tree]:
    return {str(rank): part for rank, part in enumerate(parts)}


def _global_indices(shards: list[Array]) -> list[Array]:
    """The index in the global batch of every row of every shard."""
    indices, start = [], 0
    for shard in shards:
        xp = array_namespace(shard)
        indices.append(xp.arange(start, start + shard.shape[0], device=device(shard)))
        start += shard.shape[0]
    return indices


def _ring_sigmoid_loss(
    inputs: dict[str, Tree], _: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    """One rotation: each text shard travels with the sum of its gradients and comes home."""
    zimg, texts = _shards(inputs["zimg"]), _shards(inputs["ztxt"])
    t_prime, b = inputs["t_prime"], inputs["b"]
    xp = array_namespace(t_prime)
    rows, columns = _global_indices(zimg), _global_indices(texts)
    total = sum(shard.shape[0] for shard in zimg)
    dloss = cotangents.get("loss", xp.ones_like(t_prime))
    losses = [xp.zeros_like(t_prime) for _ in zimg]
    dt_primes, dbs = list(losses), list(losses)
    dzimg = [xp.zeros_like(shard) for shard in zimg]
    dtexts = [xp.zeros_like(shard) for shard in texts]
    for _step in range(len(zimg)):
        for rank, images in enumerate(zimg):
            nll, res = sigmoid_loss_fwd(
                images,
                texts[rank],
                t_prime,
                b,
                rows=rows[rank],
                columns=columns[rank],
                total=total,
            )
            grads = sigmoid_loss_bwd(res, dloss)
            losses[rank] = losses[rank] + nll
            dzimg[rank] = dzimg[rank] + grads.dzimg
            dtexts[rank] = dtexts[rank] + grads.dztxt
            dt_primes[rank] = dt_primes[rank] + grads.dt_prime
            dbs[rank] = dbs[rank] + grads.db
        texts, dtexts, columns = _shift(texts), _shift(dtexts), _shift(columns)
    out = {"loss": reduce(add, losses)}
    if not cotangents:
        return answer(out)
    return answer(
        out,
        {
            "dzimg": _by_rank(dzimg),
            "dztxt": _by_rank(dtexts),
            "dt_prime": reduce(add, dt_primes),
            "db": reduce(add, dbs),
        },
    )


def _ring_softmax_loss(
    inputs: dict[str, Tree], _: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    """Two rotations: the sums over the lines of the logits first, then the gradients."""
    zimg, texts = _shards(inputs["zimg"]), _shards(inputs["ztxt"])
    t_prime = inputs["t_prime"]
    xp = array_namespace(t_prime)
    rows, columns = _global_indices(zimg), _global_indices(texts)
    total = sum(shard.shape[0] for shard in zimg)
    world = range(len(zimg))
    image_lines: list[Any] = [None for _ in world]
    text_lines: list[Any] = [None for _ in world]
    for _step in world:
        for rank in world:
            logits = scaled_cosine_fwd(zimg[rank], texts[rank], t_prime)[0]
            targets = diagonal(rows[rank], columns[rank])
            for lines, axis in ((image_lines, 1), (text_lines, 0)):
                part = line_statistics(logits, targets, axis=axis)
                old = lines[rank]
                lines[rank] = part if old is None else merge_statistics(old, part)
        texts, text_lines, columns = _shift(texts), _shift(text_lines), _shift(columns)
    nll = reduce(add, (lines_loss(lines) for lines in (*image_lines, *text_lines)))
    out = {"loss": nll / (2 * total)}
    if not cotangents:
        return answer(out)
    dzimg = [xp.zeros_like(shard) for shard in zimg]
    dtexts = [xp.zeros_like(shard) for shard in texts]
    dt_primes = [xp.zeros_like(t_prime) for _ in world]
    for _step in world:
        for rank in world:
            logits, res = scaled_cosine_fwd(zimg[rank], texts[rank], t_prime)
            dlogits = softmax_dlogits(
                logits,
                diagonal(rows[rank], columns[rank]),
                image_lines[rank],
                text_lines[rank],
                image_total=total,
                text_total=total,
            )
            grads = scaled_cosine_bwd(res, cotangents["loss"] * dlogits)
            dzimg[rank] = dzimg[rank] + grads[0]
            dtexts[rank] = dtexts[rank] + grads[1]
            dt_primes[rank] = dt_primes[rank] + grads[2]
        texts, dtexts, columns = _shift(texts), _shift(dtexts), _shift(columns)
        text_lines = _shift(text_lines)
    grad = {"dzimg": _by_rank(dzimg), "dztxt": _by_rank(dtexts)}
    return answer(out, {**grad, "dt_prime": reduce(add, dt_primes)})


def _clip_mean_gradient(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], _: Mapping[str, Array]
) -> Answer:
    """The mean of the ranks' gradients, then clipped by its global norm."""
    grads = _shards(inputs["grads"])
    mean = tree_map(lambda *leaves: reduce(add, leaves) / len(leaves), *grads)
    clipped, _norm = clip_by_global_norm(mean, attrs["max_norm"])
    return answer({"out": clipped})


_SCALED = ("zimg", "ztxt", "t_prime")
_SHARDS = ("zimg", "ztxt")

RING_OPERATIONS = (
    Operation(
        "ring_sigmoid_loss",
        (*_SCALED, "b"),
        ("loss",),
        _ring_sigmoid_loss,
        (*_SCALED, "b"),
        shards=_SHARDS,
    ),
    Operation("ring_softmax_loss", _SCALED, ("loss",), _ring_softmax_loss, _SCALED, shards=_SHARDS),
    Operation(
        "clip_mean_gradient",
        ("grads",),
        ("out",),
        _clip_mean_gradient,
        attrs=("max_norm",),
        shards=("grads",),
    ),
)
