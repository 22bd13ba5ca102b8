"""The sigmoid loss with all its gradients: ours against the matrix products alone, and open_clip.

    python tests/benchmarks/loss.py [--libraries numpy torch jax] [--sizes 1024 4096] [--rounds 7]

float32, d = 768, on all cores. The floor is the three matrix products of every tile and nothing
else, on the same tiles and in the same library. open_clip's `SigLipLoss` is differentiated by
Torch's autograd, as its users do. In every round the sides take turns, and the ratios are medians
over the rounds. Every library is a process of its own; so is every measurement of memory, which
is what the resident size grew by at its peak, less the two gradients.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

D = 768
LIBRARIES = ("numpy", "torch", "jax")
LARGEST_PEER = 8192  # open_clip holds 28 bytes for each of n² pairs

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-sizes", nargs="*", type=int, default=[4096, 16384])
    parser.add_argument("--child", choices=("time", "memory"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = timings if args.child == "time" else memory
        print(json.dumps(measure(args.libraries[0], args.sizes[0], args.rounds)))
        return
    print("\n".join(markdown(args.libraries, args.sizes, args.rounds, args.memory_sizes)))


def markdown(
    libraries: list[str], sizes: list[int], rounds: int, memory_sizes: list[int]
) -> list[str]:
    """The tables of docs/benchmarks.md."""
    lines = [
        "| library | pairs n | floor s | ours s | ours / floor | time of n / time of n/2 "
        "| open_clip s | ours / open_clip |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for library in libraries:
        last: tuple[int, float] | None = None
        for n in sizes:
            # Many rounds where they are short, few where each takes minutes.
            found = child("time", library, n, rounds if n <= 16384 else max(1, rounds // 3))
            doubled = f"{found['ours'] / last[1]:.2f}" if last and n == 2 * last[0] else ""
            peer = found.get("open_clip")
            against = f"{peer:.3f} | {found['ours / open_clip']:.2f}" if peer else " | "
            lines.append(
                f"| {library} | {n:,} | {found['floor']:.3f} | {found['ours']:.3f} "
                f"| {found['ours / floor']:.2f} | {doubled} | {against} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
            last = n, found["ours"]
    lines += [
        "",
        "| library | pairs n | extra memory | resident in all |",
        "| --- | --- | --- | --- |",
    ]
    for library in libraries:
        for n in memory_sizes:
            found = child("memory", library, n, 1)
            total = f"{found['resident'] / 1e6:,.0f} MB" if found["resident"] else ""
            lines.append(f"| {library} | {n:,} | {found['extra'] / 1e6:.0f} MB | {total} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def child(kind: str, library: str, n: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, "--libraries", library]
    command += ["--sizes", str(n), "--rounds", str(rounds)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def timings(library: str, n: int, rounds: int) -> dict[str, float]:
    sides = SIDES[library](n)
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    for peer in set(sides) - {"ours"}:
        ratios = (a / b for a, b in zip(seconds["ours"], seconds[peer], strict=True))
        found[f"ours / {peer}"] = statistics.median(ratios)
    return found


def memory(library: str, n: int, _: int) -> dict[str, float]:
    if library == "jax":
        return jax_memory(n)
    import resource

    warm = SIDES[library](256)["ours"]
    warm()
    ours = SIDES[library](n)["ours"]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    ours()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"extra": peak - before - 2 * n * D * 4, "resident": peak}


def embeddings(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        z = rng.standard_normal((n, D), dtype=np.float32)
        # Without a temporary, the memory of which would hide what is measured after it.
        z /= np.sqrt(np.einsum("nd,nd->n", z, z))[:, None]
        found.append(z)
    return found


T_PRIME, B = np.asarray(math.log(10), np.float32), np.asarray(-10, np.float32)


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
    from subjects.open_clip import losses

    peer = losses().SigLipLoss()  # the import lets Torch use one core, as the tests do
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

    return {
        "floor": lambda: jax.block_until_ready(products(zimg, ztxt)),
        "ours": lambda: jax.block_until_ready(tiled_sigmoid_loss(zimg, ztxt, t_prime, b)),
    }


def jax_memory(n: int) -> dict[str, float]:
    """What XLA says of its temporaries: the resident size would count the compiler too."""
    import jax
    import jax.numpy as jnp

    from siglip_jax import tiled_sigmoid_loss

    matrix, scalar = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, D), ()))
    lowered = jax.jit(tiled_sigmoid_loss).lower(matrix, matrix, scalar, scalar)
    analysis = lowered.compile().memory_analysis()
    return {"extra": analysis.temp_size_in_bytes, "resident": 0}


SIDES = {"numpy": numpy_sides, "torch": torch_sides, "jax": jax_sides}

if __name__ == "__main__":
    main()
