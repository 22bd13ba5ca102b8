"""The image tower: patches, blocks and attention pooling."""

from functools import partial
from typing import NamedTuple, TypedDict

from array_api_compat import array_namespace

from siglip_ref.config import ImageConfig
from siglip_ref.encoders.block import BlockParams
from siglip_ref.encoders.encoder import EncoderResiduals, encoder_bwd, encoder_fwd, encoder_probes
from siglip_ref.encoders.execution import WHOLE, Execution, backward_in_parts, forward_in_parts
from siglip_ref.encoders.map_head import (
    MapHeadParams,
    MapHeadResiduals,
    map_head_bwd,
    map_head_fwd,
    map_head_probes,
)
from siglip_ref.fused import fusable
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import DenseParams, LayerNormParams, patch_embed_bwd, patch_embed_fwd
from siglip_ref.primitives.patch_embed import PatchEmbedResiduals
from siglip_ref.types import Array, Float


class ImageParams(TypedDict):
    """The parameters of the image tower."""

    patch_embed: DenseParams
    pos_embedding: Float[Array, "l d"]
    block: dict[str, BlockParams]
    encoder_norm: LayerNormParams
    map_head: MapHeadParams


class ImageResiduals(NamedTuple):
    """What `image_bwd` needs from `image_fwd`."""

    patch_embed: tuple[PatchEmbedResiduals, ...]
    encoder: EncoderResiduals
    map_head: tuple[MapHeadResiduals, ...]


@fusable
def image_fwd(
    images: Float[Array, "n height width c"],
    params: ImageParams,
    config: ImageConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n d"], ImageResiduals]:
    """out = map_head(encoder(patch_embed(images) + pos_embedding)), not yet normalised.

    Pixels lie in [-1, 1]. There is no class token and no projection after the pooling.

    Source: arXiv:2303.15343, section 4; big_vision, `models/vit.py` with `pool_type="map"`.
    """
    embed = partial(patch_embed_fwd, params=params["patch_embed"])
    pool = partial(
        map_head_fwd,
        params=params["map_head"],
        num_heads=config.num_heads,
        eps=config.layer_norm_eps,
    )
    tokens, patch_embed = forward_in_parts(embed, images, execution)
    tokens = tokens + params["pos_embedding"]
    tokens, encoder = encoder_fwd(tokens, params, config, execution)
    out, map_head = forward_in_parts(pool, tokens, execution)
    return out, ImageResiduals(patch_embed, encoder, map_head)


@fusable
def image_bwd(
    res: ImageResiduals,
    dout: Float[Array, "n d"],
    config: ImageConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n height width c"], ImageParams]:
    """Cotangents (dimages, dparams)."""
    xp = array_namespace(dout)
    dtokens, map_head = backward_in_parts(map_head_bwd, res.map_head, dout, execution)
    dtokens, block, encoder_norm = encoder_bwd(res.encoder, dtokens, config, execution)
    pos_embedding = cast_like(xp.sum(at_least_float32(dtokens), axis=0), dtokens)
    dimages, patch_embed = backward_in_parts(patch_embed_bwd, res.patch_embed, dtokens, execution)
    dparams = ImageParams(
        patch_embed=patch_embed,
        pos_embedding=pos_embedding,
        block=block,
        encoder_norm=encoder_norm,
        map_head=map_head,
    )
    return dimages, dparams


def image_probes(
    images: Float[Array, "n height width c"], params: ImageParams, config: ImageConfig
) -> dict[str, Array]:
    """Every intermediate of the image tower by name, in the order of the computation.

    `patch_embed`; `embedded` (with positions); `block/00/ln_0`, `/attn/weights`, `/attn`,
    `/+attn`, `/ln_1`, `/mlp`, `/+mlp` and `block/00` for each block; `encoder_norm` (the tokens
    before pooling); `map_head/…`; `pooled`.
    """
    pooled, res = image_fwd(images, params, config)
    (patch_embed,), (map_head,) = res.patch_embed, res.map_head
    patches, _ = patch_embed_fwd(*patch_embed)
    embedded = patches + params["pos_embedding"]
    head = map_head_probes(map_head)
    return {
        "patch_embed": patches,
        "embedded": embedded,
        **encoder_probes(embedded, res.encoder),
        "encoder_norm": map_head.attn.key.x,
        **{f"map_head/{name}": value for name, value in head.items()},
        "pooled": pooled,
    }
