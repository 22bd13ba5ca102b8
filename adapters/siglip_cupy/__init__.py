"""The core on CuPy: a backend, the tiled loss in cuBLAS and CUDA kernels, and a ring over NCCL."""

try:
    import cupy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "siglip_cupy needs CuPy, which is not installed: pip install 'siglip-ref[cupy]'"
    ) from error

from siglip_cupy.backend import CupyBackend
from siglip_cupy.nccl import NcclCommunicator, world
from siglip_cupy.tile_loop import tiled_sigmoid_loss

__all__ = ["CupyBackend", "NcclCommunicator", "tiled_sigmoid_loss", "world"]
