"""The two towers and their parts, composed of primitives in the same `_fwd` / `_bwd` shape."""

from siglip_ref.encoders.block import BlockParams, block_bwd, block_fwd
from siglip_ref.encoders.encoder import encoder_bwd, encoder_fwd
from siglip_ref.encoders.image import ImageParams, image_bwd, image_fwd, image_probes
from siglip_ref.encoders.map_head import MapHeadParams, map_head_bwd, map_head_fwd
from siglip_ref.encoders.mlp import MlpParams, mlp_bwd, mlp_fwd
from siglip_ref.encoders.text import TextParams, text_bwd, text_fwd, text_probes

__all__ = [
    "BlockParams",
    "ImageParams",
    "MapHeadParams",
    "MlpParams",
    "TextParams",
    "block_bwd",
    "block_fwd",
    "encoder_bwd",
    "encoder_fwd",
    "image_bwd",
    "image_fwd",
    "image_probes",
    "map_head_bwd",
    "map_head_fwd",
    "mlp_bwd",
    "mlp_fwd",
    "text_bwd",
    "text_fwd",
    "text_probes",
]
