"""The sigmoid loss on a ring of processes, and the same loss in one of them.

    python tests/benchmarks/ring.py [--carriers mpi torch] [--ranks 2] [--sizes 8192] [--rounds 7]
        [--json]

float32, d = 768, one thread in each process, and the same loss in tiles on both sides: NumPy's
over MPI, Torch's over gloo. The n pairs in all are n / ranks on each rank. In every round the
first process computes the loss and all gradients of all pairs while the others sleep, and then
all of them share the work. A round of the ring lasts from the moment that all are ready until the
last of them is done; the speedup is the median over the rounds of the quotients.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inputs import T_PRIME, B, embeddings

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CARRIERS = ("mpi", "torch")
TIMEOUT = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carriers", nargs="*", choices=CARRIERS, default=CARRIERS)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sizes", nargs="*", type=int, default=[8192])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        ring_rank(args.carriers[0], args.sizes, args.rounds)
        return
    rows = [
        row
        for carrier in args.carriers
        for row in ring(carrier, args.ranks, args.sizes, args.rounds)
    ]
    if args.json:
        print(json.dumps({"rows": rows}))
        return
    print("over   ranks       n   one s  ring s  speedup")
    for row in rows:
        print(
            f"{row['carrier']:<5} {row['ranks']:>6} {row['n']:>7,} {row['one']:7.3f} "
            f"{row['ring']:7.3f} {row['speedup']:8.2f}"
        )


def ring(carrier: str, ranks: int, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """The medians of each size."""
    if carrier == "mpi":
        launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)]
        launcher += [sys.executable]
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(ranks)]
    command = [*launcher, __file__, "--rank", "--carriers", carrier, "--rounds", str(rounds)]
    command += ["--sizes", *map(str, sizes)]
    run = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    )
    found: list[dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    return found


def ring_rank(carrier: str, sizes: list[int], rounds: int) -> None:
    """What every process does; the first one prints the medians."""
    if carrier == "mpi":
        from siglip_mpi import world
    else:
        from siglip_torch import world

    with world(timeout=TIMEOUT) as comm:
        rows = [{"carrier": carrier, **measured(carrier, comm, n, rounds)} for n in sizes]
        if comm.rank == 0:
            print(json.dumps(rows), flush=True)


def measured(carrier: str, comm: Any, n: int, rounds: int) -> dict[str, Any]:
    import siglip_ref as sr

    share, rest = divmod(n, comm.world_size)
    if rest:
        raise SystemExit(f"n must be a multiple of the ranks, got {n} and {comm.world_size}")
    arguments, block_loss = arguments_and_loss(carrier, n)
    own = slice(comm.rank * share, (comm.rank + 1) * share)
    shards = [z[own] for z in arguments[:2]]
    seconds: dict[str, list[float]] = {"one": [], "ring": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        expected = block_loss(*arguments)[0] if comm.rank == 0 else 0
        seconds["one"].append(time.perf_counter() - start)
        comm.gather((0,))  # the others sleep in there until the first one comes
        start = time.perf_counter()
        loss, _ = sr.ring.sigmoid_loss(*shards, *arguments[2:], comm, block_loss=block_loss)
        nanoseconds = comm.gather((round(1e9 * (time.perf_counter() - start)),))
        seconds["ring"].append(max(nanoseconds)[0] / 1e9)
        if comm.rank == 0 and abs(loss - expected) > 1e-5 * expected:
            raise SystemExit(f"the ring's loss is {loss}, that of one process {expected}")
    one, ring = (values[1:] for values in seconds.values())  # the first round warms up
    return {
        "ranks": comm.world_size,
        "n": n,
        "rounds": rounds,
        "one": statistics.median(one),
        "ring": statistics.median(ring),
        "speedup": statistics.median(a / b for a, b in zip(one, ring, strict=True)),
    }


def arguments_and_loss(carrier: str, n: int) -> tuple[list[Any], Any]:
    """zimg, ztxt, t' and b of all pairs, and the loss in tiles for such arrays."""
    if carrier == "mpi":
        from siglip_numpy import tile_loop

        return [*embeddings(n), T_PRIME, B], tile_loop.tiled_sigmoid_loss
    import torch

    from siglip_torch import TorchBackend

    arguments = [torch.from_numpy(x) for x in (*embeddings(n), T_PRIME, B)]
    return arguments, TorchBackend().sigmoid_loss


if __name__ == "__main__":
    main()
