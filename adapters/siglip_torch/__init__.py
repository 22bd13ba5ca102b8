"""The core on Torch."""

from siglip_torch.backend import TorchBackend
from siglip_torch.communicator import TorchCommunicator, world
from siglip_torch.functions import sigmoid_loss, softmax_loss
from siglip_torch.model import SiglipModel
from siglip_torch.modules import SigLipLoss
from siglip_torch.tile_loop import tiled_sigmoid_loss

__all__ = [
    "SigLipLoss",
    "SiglipModel",
    "TorchBackend",
    "TorchCommunicator",
    "sigmoid_loss",
    "softmax_loss",
    "tiled_sigmoid_loss",
    "world",
]
