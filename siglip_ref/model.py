"""The two towers together: embeddings, and the loss with the gradients of every parameter."""

from collections.abc import Iterable
from operator import add
from typing import Literal, NamedTuple

from array_api_compat import array_namespace

from siglip_ref import ring
from siglip_ref.communicator import Communicator
from siglip_ref.config import SiglipConfig
from siglip_ref.encoders import (
    image_bwd,
    image_fwd,
    image_probes,
    text_bwd,
    text_fwd,
    text_probes,
)
from siglip_ref.encoders.execution import WHOLE, Execution
from siglip_ref.encoders.image import ImageResiduals
from siglip_ref.encoders.text import TextResiduals
from siglip_ref.losses import (
    Pairs,
    TiledSigmoidLoss,
    diagonal,
    sigmoid_loss_bwd,
    sigmoid_loss_fwd,
    softmax_loss_bwd,
    softmax_loss_fwd,
    tiled_sigmoid_loss,
    tiled_softmax_loss,
)
from siglip_ref.losses.pairs import check_counts
from siglip_ref.params import check_params
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import l2_normalize_bwd, l2_normalize_fwd
from siglip_ref.primitives.l2_normalize import L2NormalizeResiduals
from siglip_ref.tiles import tiles
from siglip_ref.tree import tree_map
from siglip_ref.types import Array, Float, Int, Map, Tree

Loss = Literal["sigmoid", "softmax"]
Remat = Literal["nothing", "blocks", "towers"]


class ImageTowerResiduals(NamedTuple):
    """What `encode_image_bwd` needs from `encode_image_fwd`."""

    tower: ImageResiduals
    normalize: L2NormalizeResiduals


class TextTowerResiduals(NamedTuple):
    """What `encode_text_bwd` needs from `encode_text_fwd`."""

    tower: TextResiduals
    normalize: L2NormalizeResiduals


def encode_image(
    params: Tree, images: Float[Array, "n height width c"], config: SiglipConfig
) -> Float[Array, "n d"]:
    """Unit-norm embeddings of images with pixels in [-1, 1].

    Raises ValueError if the images or the parameters do not fit `config`.
    """
    check_images(images, config)
    check_params(params, config)
    return encode_image_fwd(params, images, config)[0]


def encode_text(
    params: Tree, tokens: Int[Array, "n l"], config: SiglipConfig
) -> Float[Array, "n d"]:
    """Unit-norm embeddings of texts, tokenised and padded to the context length.

    Raises ValueError if the tokens or the parameters do not fit `config`, TypeError if the
    tokens are not integers.
    """
    check_tokens(tokens, config)
    check_params(params, config)
    return encode_text_fwd(params, tokens, config)[0]


def encode_image_fwd(
    params: Tree,
    images: Float[Array, "n height width c"],
    config: SiglipConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n d"], ImageTowerResiduals]:
    """zimg = l2_normalize(image tower(images))."""
    pooled, tower = image_fwd(images, params["img"], config.image, execution)
    zimg, normalize = l2_normalize_fwd(pooled, config.l2_norm_eps)
    return zimg, ImageTowerResiduals(tower, normalize)


def encode_image_bwd(
    res: ImageTowerResiduals,
    dzimg: Float[Array, "n d"],
    config: SiglipConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n height width c"], Tree]:
    """Cotangents of the images and of `params["img"]`."""
    dpooled = l2_normalize_bwd(res.normalize, dzimg)
    return image_bwd(res.tower, dpooled, config.image, execution)


def encode_text_fwd(
    params: Tree,
    tokens: Int[Array, "n l"],
    config: SiglipConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n d"], TextTowerResiduals]:
    """ztxt = l2_normalize(text tower(tokens))."""
    pooled, tower = text_fwd(tokens, params["txt"], config.text, execution)
    ztxt, normalize = l2_normalize_fwd(pooled, config.l2_norm_eps)
    return ztxt, TextTowerResiduals(tower, normalize)


def encode_text_bwd(
    res: TextTowerResiduals,
    dztxt: Float[Array, "n d"],
    config: SiglipConfig,
    execution: Execution = WHOLE,
) -> Tree:
    """The cotangent of `params["txt"]`."""
    dpooled = l2_normalize_bwd(res.normalize, dztxt)
    return text_bwd(res.tower, dpooled, config.text, execution)


def probe_image(
    params: Tree, images: Float[Array, "n height width c"], config: SiglipConfig
) -> dict[str, Array]:
    """Every intermediate of the image tower by name (see `encoders.image_probes`), then `zimg`."""
    check_images(images, config)
    check_params(params, config)
    probes = image_probes(images, params["img"], config.image)
    return {**probes, "zimg": l2_normalize_fwd(probes["pooled"], config.l2_norm_eps)[0]}


def probe_text(params: Tree, tokens: Int[Array, "n l"], config: SiglipConfig) -> dict[str, Array]:
    """Every intermediate of the text tower by name (see `encoders.text_probes`), then `ztxt`."""
    check_tokens(tokens, config)
    check_params(params, config)
    probes = text_probes(tokens, params["txt"], config.text)
    return {**probes, "ztxt": l2_normalize_fwd(probes["pooled"], config.l2_norm_eps)[0]}


def loss_and_grads(
    params: Tree,
    images: Float[Array, "n height width c"],
    tokens: Int[Array, "m l"],
    config: SiglipConfig,
    loss: Loss = "sigmoid",
    *,
    pairs: Pairs = diagonal,
    tile: int | None = None,
    microbatch: int | None = None,
    remat: Remat = "nothing",
    parallel_map: Map = map,
    block_loss: TiledSigmoidLoss = tiled_sigmoid_loss,
    comm: Communicator | None = None,
    dloss: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Tree]:
    """The loss of a batch and its gradients, a tree like `params`.

    pairs
        Which images and texts match; by default image i and text i. With other pairs the numbers
        of images and texts may differ.
    tile
        Compute the loss in tiles of this many images and texts; None computes it whole.
    microbatch
        Run each layer over this many images, or texts, at a time, and with `remat` of `towers`
        whole towers. The loss still sees the whole batch, so the gradients are those of the whole
        batch to rounding.
    remat
        What the backward pass computes again instead of keeping it: `blocks` keeps the input of
        each block, `towers` keeps nothing of a microbatch but its embeddings. With the same
        layers in the same parts, the gradients are the same to the last bit.
    parallel_map
        How the microbatches are mapped over; a thread pool's `map` runs them side by side.
    block_loss
        What works on the tiles of the sigmoid loss, here or on each device of a ring.
    comm
        A ring of devices, each with the same parameters and a shard of the batch. The loss and
        the gradients are those of the global batch, the same on all devices; `pairs` gets global
        indices, and a `tile` of None stands for 1024.
    dloss
        Cotangent of the loss, by which all gradients are multiplied; None stands for 1. A large
        one keeps the gradients of float16 towers above underflow.

    The softmax loss has no bias, so its gradient for b is 0.

    Raises ValueError if arguments do not fit each other, TypeError if tokens are not integers.

    Source: arXiv:2303.15343, algorithm 1; microbatches with `towers`: arXiv:2101.06983.
    """
    check_images(images, config)
    check_tokens(tokens, config)
    check_params(params, config)
    check_counts(pairs, images, tokens)
    if remat not in ("nothing", "blocks", "towers"):
        raise ValueError(f"remat must be nothing, blocks or towers, got {remat!r}")

    xp = array_namespace(images, tokens)
    if remat == "towers":
        size, part_map, execution = microbatch, parallel_map, Execution(use_up=True)
    else:
        size, part_map = None, map
        execution = Execution(remat == "blocks", microbatch, parallel_map, use_up=True)
    parts = [
        *(Part("img", rows, images[rows, ...]) for rows in _microbatches(images, size)),
        *(Part("txt", rows, tokens[rows, ...]) for rows in _microbatches(tokens, size)),
    ]

    def forward(part: Part) -> tuple[Array, ImageTowerResiduals | TextTowerResiduals | None]:
        z, res = _encode(params, part, config, execution)
        return z, None if remat == "towers" else res

    embeddings, residuals = (list(x) for x in zip(*part_map(forward, parts), strict=True))
    zimg, ztxt = (
        xp.concat([z for part, z in zip(parts, embeddings, strict=True) if part.tower == tower])
        for tower in ("img", "txt")
    )
    given = zimg, ztxt
    if dloss is not None:
        given = at_least_float32(zimg), at_least_float32(ztxt)
    value, dzimg, dztxt, scalars = _loss_on_embeddings(
        loss, *given, params, pairs, tile, block_loss, comm
    )
    if dloss is not None:
        # Multiplied before it is rounded to 16 bits, since after that what is lost is lost.
        dzimg, dztxt = cast_like(dloss * dzimg, zimg), cast_like(dloss * dztxt, ztxt)
        scalars = tree_map(lambda g: cast_like(dloss * g, g), scalars)

    def backward(
        work: tuple[Part, ImageTowerResiduals | TextTowerResiduals | None],
    ) -> tuple[str, Tree]:
        part, res = work
        if res is None:
            _, res = _encode(params, part, config, execution)
        if isinstance(res, ImageTowerResiduals):
            return "img", encode_image_bwd(res, dzimg[part.rows, :], config, execution)[1]
        return "txt", encode_text_bwd(res, dztxt[part.rows, :], config, execution)

    grads: dict[str, Tree] = {}
    # Handed over one by one, so that the residuals of a part go when its gradients come.
    for tower, dparams in part_map(backward, ((part, residuals.pop(0)) for part in parts)):
        grads[tower] = tree_map(add, grads[tower], dparams) if tower in grads else dparams
    if comm is not None:
        grads = ring.sum_gradients(grads, comm)
    return value, {**grads, **scalars}


class Part(NamedTuple):
    """What of a batch one tower is run over at a time: which rows, and these rows."""

    tower: Literal["img", "txt"]
    rows: slice
    inputs: Array


def _encode(
    params: Tree, part: Part, config: SiglipConfig, execution: Execution
) -> tuple[Float[Array, "n d"], ImageTowerResiduals | TextTowerResiduals]:
    if part.tower == "img":
        return encode_image_fwd(params, part.inputs, config, execution)
    return encode_text_fwd(params, part.inputs, config, execution)


def _microbatches(inputs: Array, microbatch: int | None) -> Iterable[slice]:
    count = inputs.shape[0]
    return tiles("microbatch", count, count if microbatch is None else microbatch)


def _loss_on_embeddings(
    loss: Loss,
    zimg: Float[Array, "n d"],
    ztxt: Float[Array, "m d"],
    params: Tree,
    pairs: Pairs,
    tile: int | None,
    block_loss: TiledSigmoidLoss,
    comm: Communicator | None,
) -> tuple[Float[Array, ""], Float[Array, "n d"], Float[Array, "m d"], dict[str, Array]]:
    """The loss, the gradients of the embeddings, and those of t' and b by name."""
    xp = array_namespace(zimg, ztxt)
    t_prime, b = params["t_prime"], params["b"]
    size = 1024 if tile is None else tile
    if loss == "sigmoid":
        embeddings = zimg, ztxt, t_prime, b
        if comm is not None:
            value, cotangents = ring.sigmoid_loss(
                *embeddings, comm, tile=size, pairs=pairs, block_loss=block_loss
            )
        elif tile is not None:
            value, cotangents = block_loss(*embeddings, tile=size, pairs=pairs)
        else:
            value, sigmoid_res = sigmoid_loss_fwd(*embeddings, pairs=pairs)
            cotangents = sigmoid_loss_bwd(sigmoid_res, xp.ones_like(value))
        dzimg, dztxt, dt_prime, db = cotangents
    elif loss == "softmax":
        if comm is not None:
            value, grads = ring.softmax_loss(zimg, ztxt, t_prime, comm, tile=size, pairs=pairs)
        elif tile is not None:
            value, grads = tiled_softmax_loss(zimg, ztxt, t_prime, tile=size, pairs=pairs)
        else:
            value, softmax_res = softmax_loss_fwd(zimg, ztxt, t_prime, pairs=pairs)
            grads = softmax_loss_bwd(softmax_res, xp.ones_like(value))
        dzimg, dztxt, dt_prime = grads
        db = xp.zeros_like(b)
    else:
        raise ValueError(f"loss must be sigmoid or softmax, got {loss!r}")
    return value, dzimg, dztxt, {"t_prime": dt_prime, "b": db}


def check_images(images: Float[Array, "n height width c"], config: SiglipConfig) -> None:
    """Raise ValueError unless there are images, of the size of the configuration."""
    size = config.image.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (size, size, 3) or images.shape[0] < 1:
        raise ValueError(
            f"images must have the shape (n, {size}, {size}, 3) with n >= 1, "
            f"got {tuple(images.shape)}"
        )


def check_tokens(tokens: Int[Array, "n l"], config: SiglipConfig) -> None:
    """Raise ValueError unless there are texts of the context length, TypeError unless integers."""
    length = config.text.context_length
    if tokens.ndim != 2 or tokens.shape[1] != length or tokens.shape[0] < 1:
        raise ValueError(
            f"tokens must have the shape (n, {length}) with n >= 1, padded to the context length, "
            f"got {tuple(tokens.shape)}"
        )
    if not array_namespace(tokens).isdtype(tokens.dtype, "integral"):
        raise TypeError(f"tokens must be integers, got the dtype {tokens.dtype}")
