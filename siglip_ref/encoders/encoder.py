"""The stack of blocks with its final normalisation, which both towers share."""

from functools import partial
from typing import NamedTuple

from siglip_ref.config import ImageConfig, TextConfig
from siglip_ref.encoders.block import (
    BlockParams,
    BlockResiduals,
    block_bwd,
    block_fwd,
    block_probes,
)
from siglip_ref.encoders.execution import WHOLE, Execution, backward_in_parts, forward_in_parts
from siglip_ref.fused import fusable
from siglip_ref.primitives import LayerNormParams, layer_norm_bwd, layer_norm_fwd
from siglip_ref.primitives.layer_norm import LayerNormResiduals
from siglip_ref.types import Array, Float, Tree


class RematResiduals(NamedTuple):
    """What a rematerialised block keeps: its input. Its backward pass runs it forward again."""

    x: Float[Array, "n l d"]
    params: BlockParams


class EncoderResiduals(NamedTuple):
    """What `encoder_bwd` needs from `encoder_fwd`: of each block, for each microbatch."""

    blocks: list[tuple[BlockResiduals | RematResiduals, ...]]
    norm: LayerNormResiduals


def encoder_fwd(
    x: Float[Array, "n l d"],
    params: Tree,
    config: ImageConfig | TextConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n l d"], EncoderResiduals]:
    """out = encoder_norm(block_{depth-1}( … block_0(x))).

    `params` has the blocks under `block/00`, `block/01`, … and `encoder_norm`. With `remat`
    the memory of a block is its input only, for one more forward pass; gradients keep every bit.

    Source: big_vision, `models/vit.py`, `Encoder`.
    """

    def forward(
        x: Float[Array, "n l d"], block: BlockParams
    ) -> tuple[Float[Array, "n l d"], BlockResiduals | RematResiduals]:
        out, res = block_fwd(x, block, config.num_heads, config.layer_norm_eps)
        return out, RematResiduals(x, block) if execution.remat else res

    blocks: list[tuple[BlockResiduals | RematResiduals, ...]] = []
    for index in range(config.depth):
        block = params["block"][block_name(index)]
        x, res = forward_in_parts(partial(forward, block=block), x, execution)
        blocks.append(res)
    out, norm = layer_norm_fwd(x, params["encoder_norm"], config.layer_norm_eps)
    return out, EncoderResiduals(blocks, norm)


def encoder_bwd(
    res: EncoderResiduals,
    dout: Float[Array, "n l d"],
    config: ImageConfig | TextConfig,
    execution: Execution = WHOLE,
) -> tuple[Float[Array, "n l d"], dict[str, BlockParams], LayerNormParams]:
    """Cotangents (dx, dblocks, dencoder_norm). With `use_up` no blocks are left in `res`."""

    def backward(
        res: BlockResiduals | RematResiduals, dout: Float[Array, "n l d"]
    ) -> tuple[Float[Array, "n l d"], BlockParams]:
        if isinstance(res, RematResiduals):
            x, dout = not_before(res.x, dout)
            _, res = block_fwd(x, res.params, config.num_heads, config.layer_norm_eps)
        return block_bwd(res, dout)

    dx, encoder_norm = layer_norm_bwd(res.norm, dout)
    blocks: dict[str, BlockParams] = {}
    for index in reversed(range(config.depth)):
        name = block_name(index)
        parts = res.blocks.pop() if execution.use_up else res.blocks[index]
        dx, blocks[name] = backward_in_parts(backward, parts, dx, execution)
    return dx, dict(sorted(blocks.items())), encoder_norm


def encoder_probes(x: Float[Array, "n l d"], res: EncoderResiduals) -> dict[str, Array]:
    """The intermediates of every block, `block/00/attn` and so on.

    `block/00` itself is the output of that block. Needs residuals made without `remat`, and
    in one microbatch.
    """
    probes: dict[str, Array] = {}
    for index, (block_res,) in enumerate(res.blocks):
        if isinstance(block_res, RematResiduals):
            raise ValueError("res must come from encoder_fwd with remat=False, got remat=True")
        name = f"block/{block_name(index)}"
        probes |= {f"{name}/{key}": value for key, value in block_probes(x, block_res).items()}
        x = probes[name] = probes[f"{name}/+mlp"]
    return probes


@fusable
def not_before(
    x: Float[Array, "n l d"], dout: Float[Array, "n l d"]
) -> tuple[Float[Array, "n l d"], Float[Array, "n l d"]]:
    """(x, dout) unchanged: what is computed from this x waits for dout.

    A compiler would merge the second forward pass of a block with the first, and keep all of it.
    """
    return x, dout


def block_name(index: int) -> str:
    """`00`, `01`, …: padded, so that sorted names are in the order of the layers."""
    return f"{index:02d}"
