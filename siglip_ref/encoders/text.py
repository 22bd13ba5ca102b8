"""The text tower: tokens, blocks without a mask, and the last position."""

from typing import NamedTuple, NotRequired, TypedDict

from array_api_compat import array_namespace, device

from siglip_ref.config import TextConfig
from siglip_ref.encoders.block import BlockParams
from siglip_ref.encoders.encoder import EncoderResiduals, encoder_bwd, encoder_fwd, encoder_probes
from siglip_ref.encoders.execution import WHOLE, Execution
from siglip_ref.fused import fusable
from siglip_ref.precision import at_least_float32, cast_like
from siglip_ref.primitives import (
    DenseParams,
    LayerNormParams,
    dense_bwd,
    dense_fwd,
    embed_bwd,
    embed_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals
from siglip_ref.primitives.embed import EmbedResiduals
from siglip_ref.primitives.layer_norm import layer_norm_out
from siglip_ref.types import Array, Float, Int


class EmbedParams(TypedDict):
    """The token table."""

    embedding: Float[Array, "v d"]


class TextParams(TypedDict):
    """The parameters of the text tower; a tower with `out_dim=None` has no head."""

    embed: EmbedParams
    pos_embedding: Float[Array, "l d"]
    block: dict[str, BlockParams]
    encoder_norm: LayerNormParams
    head: NotRequired[DenseParams]


class TextResiduals(NamedTuple):
    """What `text_bwd` needs from `text_fwd`; `head` is None where the tower has none."""

    embed: EmbedResiduals
    encoder: EncoderResiduals
    head: DenseResiduals | None


@fusable
def text_fwd(
    tokens: Int[Array, "n l"],
    params: TextParams,
    config: TextConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n e"], TextResiduals]:
    """out = head(encoder(embed(tokens) + pos_embedding)[last position]), not yet normalised.

    Padding is attended like any token, and the last position is pooled whatever it holds.

    Source: big_vision, `models/proj/image_text/text_transformer.py` with `pool_type="last"`.
    """
    x, embed = embed_fwd(tokens, params["embed"]["embedding"])
    x = x + params["pos_embedding"]
    x, encoder = encoder_fwd(x, params, config, execution)
    last = x[:, -1, :]
    if config.out_dim is None:
        return last, TextResiduals(embed, encoder, None)
    out, head = dense_fwd(last, params["head"])
    return out, TextResiduals(embed, encoder, head)


@fusable
def text_bwd(
    res: TextResiduals,
    dout: Float[Array, "n e"],
    config: TextConfig,
    execution: Execution = WHOLE,
) -> TextParams:
    """The cotangent dparams; tokens are integers and have none."""
    xp = array_namespace(dout)
    if res.head is None:
        dlast, head = dout, None
    else:
        dlast, head = dense_bwd(res.head, dout)
    n, d = dlast.shape
    others = (n, config.context_length - 1, d)
    zeros = xp.zeros(others, dtype=dlast.dtype, device=device(dlast))
    dx = xp.concat((zeros, xp.reshape(dlast, (n, 1, d))), axis=1)
    dx, block, encoder_norm = encoder_bwd(res.encoder, dx, config, execution)
    dparams = TextParams(
        embed=EmbedParams(embedding=embed_bwd(res.embed, dx)),
        pos_embedding=cast_like(xp.sum(at_least_float32(dx), axis=0), dx),
        block=block,
        encoder_norm=encoder_norm,
    )
    return dparams if head is None else TextParams(**dparams, head=head)


def text_probes(
    tokens: Int[Array, "n l"], params: TextParams, config: TextConfig
) -> dict[str, Array]:
    """Every intermediate of the text tower by name, in the order of the computation.

    `embed`; `embedded` (with positions); the blocks as in `image_probes`; `encoder_norm` (all
    positions); `last` (the pooled position); `pooled` (after the head, if there is one).
    """
    pooled, res = text_fwd(tokens, params, config)
    vectors, _ = embed_fwd(*res.embed)
    embedded = vectors + params["pos_embedding"]
    normalized = layer_norm_out(res.encoder.norm)
    return {
        "embed": vectors,
        "embedded": embedded,
        **encoder_probes(embedded, res.encoder),
        "encoder_norm": normalized,
        "last": normalized[:, -1, :],
        "pooled": pooled,
    }
