"""Every operation once more, as plain as NumPy allows: what `siglip-spec repro` prints.

Float64, forward only, no checks, no blocks, no mixed precision. A function takes the inputs and
attributes of its operation by their names: trees as nested dicts, shards as lists. It returns the
output, or a tuple of the outputs in their order. Nothing here is imported by `siglip_ref`, nor
the other way round: two writings of one specification that the tests hold against each other.
"""

from collections.abc import Callable
from typing import Any

from siglip_spec.plain import gradients, loss, primitives, towers, training

MODULES = (primitives, loss, towers, gradients, training)
"""In an order in which each needs functions of the modules before it only."""

PLAIN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        loss.sigmoid_loss,
        loss.pairwise_sigmoid_loss,
        loss.tiled_sigmoid_loss,
        loss.softmax_loss,
        loss.initial_scalars,
        loss.ring_sigmoid_loss,
        loss.ring_softmax_loss,
        primitives.dense,
        primitives.layer_norm,
        primitives.gelu_tanh,
        primitives.softmax,
        primitives.softplus,
        primitives.log_sigmoid,
        primitives.l2_normalize,
        primitives.scaled_cosine,
        primitives.patch_embed,
        primitives.embed,
        primitives.dot_product_attention,
        primitives.multi_head_attention,
        primitives.normalize_pixels,
        towers.block,
        towers.map_head,
        towers.encode_image,
        towers.encode_text,
        towers.siglip,
        training.clip_mean_gradient,
        training.adamw,
        training.adafactor,
        training.lion,
        training.learning_rate,
        training.training_run,
    )
}
"""The plain function of each operation."""

__all__ = ["MODULES", "PLAIN"]
