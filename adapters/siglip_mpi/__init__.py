"""Rings of processes with mpi4py's methods: real ones, and simulated ones in a single process."""

from siglip_mpi.communicator import MpiCommunicator, communicator
from siglip_mpi.counted import Counted
from siglip_mpi.simulated import AbortedError, SimulatedMPI, simulate
from siglip_mpi.world import world
from siglip_ref.faults import RingError

__all__ = [
    "AbortedError",
    "Counted",
    "MpiCommunicator",
    "RingError",
    "SimulatedMPI",
    "communicator",
    "simulate",
    "world",
]
