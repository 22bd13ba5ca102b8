"""The sigmoid loss with all its gradients: ours against the matrix products alone, and open_clip.

    python tests/benchmarks/loss.py [--libraries numpy torch jax] [--sizes 1024 4096] [--rounds 7]
        [--memory-sizes 4096 16384] [--once 131072] [--json]

float32, d = 768, on all cores. The floor is the three matrix products of every tile and nothing
else, on the same tiles and in the same library. open_clip's `SigLipLoss` is differentiated by
Torch's autograd, as its users do. In every round the sides take turns, ours with half the pairs
among them, and the ratios are medians over the rounds; beyond 8,192 pairs there are fewer rounds.
Every library is a process of its own, and so is every measurement of memory: what the resident
size grew by at its peak, less the two gradients; for JAX what XLA says of its temporaries.

`--once` computes the loss of so many pairs a single time, in a process of its own for each
library, and tells how large that process became in all: inputs, gradients and imports included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from inputs import T_PRIME, B, D, embeddings

sys.path.insert(0, str(Path(__file__).parents[1]))

LIBRARIES = ("numpy", "torch", "jax")
ALL_ROUNDS = 8192  # pairs up to which every round is run
LARGEST_PEER = 8192  # open_clip holds 28 bytes for each of n² pairs
SMALLEST_HALF = 1024  # pairs from which on half of them are timed too
WARM_UP = 2048

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-sizes", nargs="*", type=int, default=[4096, 16384])
    parser.add_argument("--once", nargs="*", type=int, default=[])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(KINDS[args.child](args.libraries[0], args.sizes[0], args.rounds)))
        return
    work = {"time": args.sizes, "memory": args.memory_sizes, "once": args.once}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in work}
    for kind, sizes in work.items():
        for library in args.libraries:
            for n in sizes:
                row = child(kind, library, n, args.rounds)
                found[kind].append(row)
                print(kind, *(f"{name} {value}" for name, value in row.items()), file=sys.stderr)
    print(json.dumps(found) if args.json else "\n".join(lines(found)))


def lines(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The figures in columns."""
    names = ["library", "n", "rounds", "floor", "ours", "open_clip"]
    names += ["ours / floor", "ours / open_clip", "n / half"]
    columns = {
        "time": names,
        "memory": ["library", "n", "extra", "resident"],
        "once": ["library", "n", "seconds", "resident"],
    }
    text = []
    for kind, rows in found.items():
        text += ["  ".join(f"{name:>16}" for name in columns[kind])] if rows else []
        for row in rows:
            cells = [row.get(name, "") for name in columns[kind]]
            text.append(
                "  ".join(f"{x:16.3f}" if isinstance(x, float) else f"{x:>16}" for x in cells)
            )
    return text


def child(kind: str, library: str, n: int, rounds: int) -> dict[str, Any]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, "--child", kind, "--libraries", library]
    command += ["--sizes", str(n), "--rounds", str(rounds)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"library": library, "n": n, **json.loads(run.stdout.splitlines()[-1])}


def timings(library: str, n: int, rounds: int) -> dict[str, float]:
    """Median seconds of each side, and ratios to ours."""
    if n > ALL_ROUNDS:
        rounds = max(1, rounds * ALL_ROUNDS // n)
    sides = SIDES[library](n)
    if n // 2 >= SMALLEST_HALF:
        sides["half"] = SIDES[library](n // 2)["ours"]
    # What takes minutes is warm soon enough.
    for run in (sides if n <= ALL_ROUNDS else SIDES[library](WARM_UP)).values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    for peer in sorted(set(sides) - {"ours"}):
        ratios = (a / b for a, b in zip(seconds["ours"], seconds[peer], strict=True))
        found["n / half" if peer == "half" else f"ours / {peer}"] = statistics.median(ratios)
    return {"rounds": rounds, **found}


def memory(library: str, n: int, _: int) -> dict[str, float]:
    """Bytes beside inputs and gradients, and in all."""
    if library == "jax":
        return jax_memory(n)
    import resource

    warm = SIDES[library](256)["ours"]
    warm()
    ours = SIDES[library](n)["ours"]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    ours()
    return {"extra": peak() - before - 2 * n * D * 4, "resident": peak()}


def once(library: str, n: int, _: int) -> dict[str, float]:
    """Seconds of a single run, and bytes of the whole process."""
    ours = SIDES[library](n)["ours"]
    start = time.perf_counter()
    ours()
    return {"seconds": time.perf_counter() - start, "resident": peak()}


def peak() -> int:
    """The largest resident size of this process so far."""
    from siglip_ref.backend import NumpyBackend

    return NumpyBackend().peak_memory()


def numpy_sides(n: int) -> dict[str, Run]:
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import threadpool_limits

    from siglip_numpy import ThreadedNumpyBackend
    from siglip_numpy.threads import num_threads
    from siglip_numpy.tile_loop import Buffers, disjoint_places, smaller
    from siglip_ref.tiles import tiles

    zimg, ztxt = embeddings(n)
    places = list(tiles("tile", n, smaller(1024, n)))

    def floor() -> None:
        buffers = Buffers(zimg.dtype)

        def work(place: tuple[int, int]) -> None:
            images, texts = zimg[places[place[0]]], ztxt[places[place[1]]]
            logits = buffers.take("logits", len(images), len(texts))
            np.matmul(images, texts.T, out=logits)
            np.matmul(logits, texts, out=buffers.take("embeddings", len(images), D))
            np.matmul(logits.T, images, out=buffers.take("embeddings", len(texts), D))

        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads()) as pool:
            for group in disjoint_places(len(places), len(places)):
                list(pool.map(work, group))

    backend = ThreadedNumpyBackend()
    return {"floor": floor, "ours": lambda: backend.sigmoid_loss(zimg, ztxt, T_PRIME, B)}


def torch_sides(n: int) -> dict[str, Run]:
    import torch

    from siglip_numpy.threads import num_threads
    from siglip_ref.tiles import tiles
    from siglip_torch import TorchBackend

    torch.set_num_threads(num_threads())
    zimg, ztxt = (torch.from_numpy(z) for z in embeddings(n))
    t_prime, b = torch.from_numpy(T_PRIME), torch.from_numpy(B)
    size = min(n, 1024)
    logits, out = torch.empty(size, size), torch.empty(size, D)

    def floor() -> None:
        for texts in tiles("tile", n, size):
            for images in tiles("tile", n, size):
                torch.mm(zimg[images], ztxt[texts].T, out=logits)
                torch.mm(logits, ztxt[texts], out=out)
                torch.mm(logits.T, zimg[images], out=out)

    sides: dict[str, Run] = {
        "floor": floor,
        "ours": lambda: TorchBackend().sigmoid_loss(zimg, ztxt, t_prime, b),
    }
    if n <= LARGEST_PEER:
        from subjects.open_clip import losses

        peer = losses().SigLipLoss()
        torch.set_num_threads(num_threads())  # the import lets it use one core, as the tests do
        leaves = [x.clone().requires_grad_() for x in (zimg, ztxt, t_prime, b)]

        def open_clip() -> None:
            for leaf in leaves:
                leaf.grad = None
            peer(leaves[0], leaves[1], leaves[2].exp(), leaves[3]).backward()

        sides["open_clip"] = open_clip
    return sides


def jax_sides(n: int) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp
    from jax import lax

    from siglip_jax import tiled_sigmoid_loss

    zimg, ztxt = (jnp.asarray(z) for z in embeddings(n))
    t_prime, b = jnp.asarray(T_PRIME), jnp.asarray(B)
    size = min(n, 1024)

    @jax.jit
    def products(zimg: Any, ztxt: Any) -> Any:
        count = n // size

        def body(number: Any, carry: Any) -> Any:
            i, j = number % count * size, number // count * size
            images = lax.dynamic_slice_in_dim(zimg, i, size)
            texts = lax.dynamic_slice_in_dim(ztxt, j, size)
            logits = images @ texts.T
            return (
                lax.dynamic_update_slice_in_dim(carry[0], logits @ texts, i, 0),
                lax.dynamic_update_slice_in_dim(carry[1], logits.T @ images, j, 0),
            )

        return lax.fori_loop(0, count * count, body, (jnp.zeros_like(zimg), jnp.zeros_like(ztxt)))

    # Compiled here, so that no run is longer for it.
    floor = products.lower(zimg, ztxt).compile()
    ours = jax.jit(tiled_sigmoid_loss).lower(zimg, ztxt, t_prime, b).compile()
    return {
        "floor": lambda: jax.block_until_ready(floor(zimg, ztxt)),
        "ours": lambda: jax.block_until_ready(ours(zimg, ztxt, t_prime, b)),
    }


def jax_memory(n: int) -> dict[str, float]:
    """What XLA says of its temporaries: the resident size would count the compiler too."""
    import jax
    import jax.numpy as jnp

    from siglip_jax import tiled_sigmoid_loss

    matrix, scalar = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, D), ()))
    lowered = jax.jit(tiled_sigmoid_loss).lower(matrix, matrix, scalar, scalar)
    analysis = lowered.compile().memory_analysis()
    return {"extra": analysis.temp_size_in_bytes}


SIDES = {"numpy": numpy_sides, "torch": torch_sides, "jax": jax_sides}
KINDS = {"time": timings, "memory": memory, "once": once}

if __name__ == "__main__":
    main()
