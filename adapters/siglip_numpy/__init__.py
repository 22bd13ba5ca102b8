"""The core on NumPy, on all cores of the host."""

from siglip_numpy.threads import ThreadedNumpyBackend

__all__ = ["ThreadedNumpyBackend"]
