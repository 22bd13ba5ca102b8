"""The independent oracle: scalar loops over 40-digit numbers, derivatives by dual numbers.

It imports mpmath and the standard library, nothing of the project and no array library, so that
agreement with the project is evidence. Call the operations through `value` and `gradient`, which
turn floats into exact numbers first.
"""

from .answers import answer
from .dual import directional_derivative, gradient, value
from .encoders import block, encoder, image_tower, map_head, mlp, text_tower
from .losses import scaled_cosine, sigmoid_loss, softmax_loss
from .numbers import exact, reals
from .optimizers import (
    adam_direction,
    big_vision_step,
    clip_by_global_norm,
    lion_direction,
    torch_step,
)
from .primitives import (
    dense,
    dot_product_attention,
    embed,
    gelu_tanh,
    l2_normalize,
    layer_norm,
    log_sigmoid,
    multi_head_attention,
    patch_embed,
    sigmoid,
    softmax,
    softplus,
)
from .tape import gradients

__all__ = [
    "adam_direction",
    "answer",
    "big_vision_step",
    "block",
    "clip_by_global_norm",
    "dense",
    "directional_derivative",
    "dot_product_attention",
    "embed",
    "encoder",
    "exact",
    "gelu_tanh",
    "gradient",
    "gradients",
    "image_tower",
    "l2_normalize",
    "layer_norm",
    "lion_direction",
    "log_sigmoid",
    "map_head",
    "mlp",
    "multi_head_attention",
    "patch_embed",
    "reals",
    "scaled_cosine",
    "sigmoid",
    "sigmoid_loss",
    "softmax",
    "softmax_loss",
    "softplus",
    "text_tower",
    "torch_step",
    "value",
]
