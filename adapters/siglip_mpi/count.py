"""Count what every loss sends on simulated ranks: `python -m siglip_mpi.count --world-size 8`.

All ranks hold as many pairs, for which the formulas are. What is printed is the most that a rank
sends. Counts of bfloat16 are those of float16, which is as long.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

import siglip_ref as sr
from siglip_mpi.communicator import communicator
from siglip_mpi.counted import Counted
from siglip_mpi.simulated import SimulatedMPI, simulate
from siglip_mpi.traffic import FORMULAS, Traffic
from siglip_ref.types import Array

T_PRIME, B = np.asarray(1.5, dtype=np.float32), np.asarray(-2.0, dtype=np.float32)

LOSSES: dict[str, Callable[[Array, Array, Counted], object]] = {
    "sigmoid_ring": lambda zimg, ztxt, comm: sr.ring.sigmoid_loss(zimg, ztxt, T_PRIME, B, comm),
    "softmax_ring": lambda zimg, ztxt, comm: sr.ring.softmax_loss(zimg, ztxt, T_PRIME, comm),
    "allgather_softmax": lambda zimg, ztxt, comm: sr.ring.allgather_softmax_loss(
        zimg, ztxt, T_PRIME, comm
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: for each loss the most that a rank sends, and what the formula says."""
    parser = argparse.ArgumentParser(
        prog="python -m siglip_mpi.count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, default in (("--world-size", 4), ("--pairs", 32), ("--width", 16)):
        parser.add_argument(option, type=_at_least_1, default=default)
    parser.add_argument("--dtype", choices=("float64", "float32", "float16"), default="float32")
    options = parser.parse_args(arguments)
    n, d = options.pairs, options.width
    dtype = np.dtype(options.dtype)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, options.world_size, n, d)) / np.sqrt(d)

    print("| loss | messages | bytes counted | bytes by the formula | numbers summed |")
    print("| --- | --- | --- | --- | --- |")
    for name, loss in LOSSES.items():

        def program(mpi: SimulatedMPI, loss: Callable[..., object] = loss) -> Traffic:
            comm = Counted(communicator(mpi))
            loss(z[0, comm.rank].astype(dtype), z[1, comm.rank].astype(dtype), comm)
            return Traffic(comm.messages, comm.num_bytes, comm.summed)

        ranks = simulate(options.world_size, program)
        counted = Traffic(*(max(counts) for counts in zip(*ranks, strict=True)))
        expected = FORMULAS[name](options.world_size, n, n, d, dtype.itemsize)
        print(
            f"| {name} | {counted.messages:,} | {counted.num_bytes:,} "
            f"| {expected.num_bytes:,} | {counted.summed} |"
        )


def _at_least_1(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
