"""Token ids to vectors, and the scatter-add that is its gradient."""

import math
from typing import NamedTuple

from array_api_compat import array_namespace, device

from siglip_ref.fused import fusable
from siglip_ref.types import Array, Float, Int


class EmbedResiduals(NamedTuple):
    """What `embed_bwd` needs from `embed_fwd`."""

    tokens: Int[Array, "n l"]
    embedding: Float[Array, "v d"]


def embed_fwd(
    tokens: Int[Array, "n l"], embedding: Float[Array, "v d"]
) -> tuple[Float[Array, "n l d"], EmbedResiduals]:
    """outᵢⱼ = embedding[tokensᵢⱼ].

    Source: flax.linen.Embed, as in big_vision's text transformer.
    """
    xp = array_namespace(tokens, embedding)
    flat = xp.take(embedding, xp.reshape(tokens, (math.prod(tokens.shape),)), axis=0)
    return xp.reshape(flat, (*tokens.shape, embedding.shape[1])), EmbedResiduals(tokens, embedding)


@fusable
def embed_bwd(res: EmbedResiduals, dout: Float[Array, "n l d"]) -> Float[Array, "v d"]:
    """dembeddingᵥ = the sum of dout over the positions that hold token v.

    The array API has no scatter-add, so positions are sorted by token and summed within each run
    of equal tokens: after the steps 1, 2, 4, … each row holds the sum of its run up to itself,
    and the last row of a run is the gradient. Shapes do not depend on the values, so it compiles;
    sums are pairwise, so their error grows with the logarithm of a run's length only.
    """
    xp = array_namespace(res.tokens, dout)
    v, d = res.embedding.shape
    count = math.prod(res.tokens.shape)
    tokens = xp.reshape(res.tokens, (count,))
    order = xp.argsort(tokens)
    tokens = xp.take(tokens, order)
    sums = xp.take(xp.reshape(dout, (count, d)), order, axis=0)
    step = 1
    while step < count:
        same = xp.expand_dims(tokens[step:] == tokens[:-step], axis=1)
        earlier = sums[:-step, :]
        carried = xp.where(same, earlier, xp.zeros_like(earlier))
        sums = xp.concat((sums[:step, :], sums[step:, :] + carried), axis=0)
        step *= 2
    every_token = xp.arange(v, dtype=tokens.dtype, device=device(tokens))
    ends = xp.searchsorted(tokens, every_token, side="right")
    starts = xp.searchsorted(tokens, every_token, side="left")
    # Tokens that do not occur take the row of zeros after the last sum.
    last = xp.where(ends > starts, ends - 1, xp.full_like(ends, count))
    zeros = xp.zeros((1, d), dtype=sums.dtype, device=device(sums))
    return xp.take(xp.concat((sums, zeros), axis=0), last, axis=0)
