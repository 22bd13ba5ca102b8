"""The core on JAX: losses that compose with its transformations, and the ring under shard_map."""

from siglip_jax.backend import JaxBackend
from siglip_jax.communicator import JaxCommunicator
from siglip_jax.ring import ring_sigmoid_loss, ring_softmax_loss
from siglip_jax.sigmoid import sigmoid_loss, tiled_sigmoid_loss
from siglip_jax.softmax import softmax_loss

__all__ = [
    "JaxBackend",
    "JaxCommunicator",
    "ring_sigmoid_loss",
    "ring_softmax_loss",
    "sigmoid_loss",
    "softmax_loss",
    "tiled_sigmoid_loss",
]
