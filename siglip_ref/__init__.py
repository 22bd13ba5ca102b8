"""SigLIP as pure functions over any array-API namespace, with analytic gradients.

    import siglip_ref as sr

    config = sr.variants["B/16-224"]
    params = sr.init_params(config, numpy.random.default_rng(0))
    loss, grads = sr.loss_and_grads(params, images, tokens, config)

Source: "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343.
"""

from siglip_ref import encoders, losses, optim, primitives, ring, tree
from siglip_ref.config import ImageConfig, SiglipConfig, TextConfig
from siglip_ref.model import encode_image, encode_text, loss_and_grads, probe_image, probe_text
from siglip_ref.params import check_params, init_params, num_params, param_shapes, prior_bias
from siglip_ref.variants import variants

__all__ = [
    "ImageConfig",
    "SiglipConfig",
    "TextConfig",
    "check_params",
    "encode_image",
    "encode_text",
    "encoders",
    "init_params",
    "loss_and_grads",
    "losses",
    "num_params",
    "optim",
    "param_shapes",
    "primitives",
    "prior_bias",
    "probe_image",
    "probe_text",
    "ring",
    "tree",
    "variants",
]
