"""One training step: ours on NumPy, Torch or JAX, and what users of each would run instead.

    python tests/benchmarks/training_step.py [--backend numpy] [--size S] [--batch 16]
        [--rounds 7] [--microbatch 4] [--remat nothing] [--json]

Same configuration, batch and float32, both on all cores: forward, backward and an AdamW update.
The peer of NumPy and Torch is Hugging Face's `SiglipModel` in Torch eager; the peer of JAX is
`jax.value_and_grad` of the same forward pass, and the same update, in one jit.

The floor of NumPy and Torch is the matrix products of our step and nothing else, in the same
library, microbatches and threads.

Each side lives in a process of its own; they take turns, one step each, and the ratio is the
median over the rounds. Memory is the peak resident size of a process, less what it held after its
imports; with the imports it is printed too. JAX compiles in the process, so its memory is what XLA
says of the compiled step instead: arguments, results and temporaries.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import siglip_ref as sr
    from siglip_ref.backend import Backend
    from siglip_ref.types import Array, Tree

SIZES = {  # width, depth, mlp_dim, num_heads
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
}
IMAGE, PATCH, CONTEXT, VOCABULARY = 224, 16, 64, 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpy", "torch", "jax"), default="numpy")
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--remat", choices=("nothing", "blocks", "towers"), default="nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, last")
    parser.add_argument("--side", choices=("ours", "peer", "floor"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    makers: dict[str, Callable[[argparse.Namespace], Side]] = {"ours": ours, "peer": peer}
    if args.backend == "jax":
        makers = {"ours": jax_ours, "peer": jax_peer}
    elif args.remat == "nothing":  # which else computes products again
        makers["floor"] = floor
    if args.side:
        serve(makers[args.side](args))
    else:
        compare(args, tuple(makers))


def compare(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    command = [sys.executable, __file__, *sys.argv[1:], "--side"]
    sides = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for name in names
    }
    print(
        f"{args.backend}, {args.size}/16 towers, batch {args.batch}, microbatch "
        f"{args.microbatch}, remat {args.remat}, float32, {os.cpu_count()} cores"
    )
    print("round ", *(f"{name:>6} s" for name in names), "  ratio")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, process in sides.items():
            seconds[name].append(float(ask(process, "step")))
        times = {name: values[-1] for name, values in seconds.items()}
        label = f"{number:>6}" if number else "warm  "
        cells = "".join(f" {value:8.3f}" for value in times.values())
        print(f"{label}{cells} {times['ours'] / times['peer']:7.2f}", flush=True)
    memory = {
        name: [float(x) for x in ask(sides[name], "memory").split()] for name in ("ours", "peer")
    }
    for process in sides.values():
        process.communicate("")
    ratios = {
        name: statistics.median(a / b for a, b in zip(values[1:], seconds["peer"][1:], strict=True))
        for name, values in seconds.items()
        if name != "peer"
    }
    used, total = ([memory["ours"][i], memory["peer"][i]] for i in (0, 1))
    for name, ratio in ratios.items():
        print(f"time ratio {name} / peer: {ratio:.2f} (median of {args.rounds})")
    print(f"peak memory over imports: {used[0]:.0f} / {used[1]:.0f} MB = {used[0] / used[1]:.2f}")
    print(
        f"peak memory in all:       {total[0]:.0f} / {total[1]:.0f} MB = {total[0] / total[1]:.2f}"
    )
    if args.json:
        settings = ("backend", "size", "batch", "microbatch", "remat", "rounds")
        print(
            json.dumps(
                {name: getattr(args, name) for name in settings}
                | {name: statistics.median(values[1:]) for name, values in seconds.items()}
                | {"time": ratios["ours"]}
                | ({"floor / peer": ratios["floor"]} if "floor" in ratios else {})
                | {"memory": used[0] / used[1], "memory in all": total[0] / total[1]}
            )
        )


def ask(process: "subprocess.Popen[str]", question: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(question + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a side ended with {process.wait()}")
    return answer


class Side(NamedTuple):
    """A step, and how much memory it took: over the imports, and in all, in bytes."""

    step: Callable[[], object]
    memory: Callable[[], tuple[float, float]]


def serve(side: Side) -> None:
    for line in sys.stdin:
        if line.strip() == "step":
            start = time.perf_counter()
            side.step()
            print(time.perf_counter() - start, flush=True)
        else:
            print(*(size / 1e6 for size in side.memory()), flush=True)


def resident(step: Callable[[], object], baseline: int) -> Side:
    return Side(step, lambda: (peak_bytes() - baseline, peak_bytes()))


def peak_bytes() -> int:
    from siglip_ref.backend import NumpyBackend

    return NumpyBackend().peak_memory()


def towers(size: str) -> dict[str, int]:
    return dict(zip(("width", "depth", "mlp_dim", "num_heads"), SIZES[size], strict=True))


def config_of(args: argparse.Namespace) -> "sr.SiglipConfig":
    import siglip_ref as sr

    sizes = towers(args.size)
    return sr.SiglipConfig(
        image=sr.ImageConfig(image_size=IMAGE, patch_size=PATCH, **sizes),
        text=sr.TextConfig(
            vocab_size=VOCABULARY, context_length=CONTEXT, out_dim=sizes["width"], **sizes
        ),
    )


def start(args: argparse.Namespace) -> "tuple[Tree, NDArray[Any], NDArray[Any]]":
    import numpy as np

    import siglip_ref as sr

    rng = np.random.default_rng(0)
    params = sr.init_params(config_of(args), rng)
    images = rng.uniform(-1, 1, (args.batch, IMAGE, IMAGE, 3)).astype(np.float32)
    return params, images, rng.integers(0, VOCABULARY, (args.batch, CONTEXT), dtype=np.int32)


def ours(args: argparse.Namespace) -> Side:
    import siglip_ref as sr
    from siglip_ref.types import Map
    from siglip_train.backends import find_backend
    from siglip_train.loop import on_device
    from siglip_train.settings import Settings
    from siglip_train.step import initial_state, make_update

    backend = find_backend(args.backend)
    baseline = peak_bytes()
    config = config_of(args)
    params, images, tokens = start(args)
    settings = Settings(clip_norm=0, ema=0)
    params, state, *_ = on_device(initial_state(params, settings), backend)
    images, tokens = backend.asarray(images), backend.asarray(tokens)
    factors = 1.0, 1.0

    def step() -> None:
        with backend.parallel_map() as parallel_map:
            one_step(parallel_map)

    def one_step(parallel_map: Map) -> None:
        nonlocal params, state
        _, grads = sr.loss_and_grads(
            params,
            images,
            tokens,
            config,
            microbatch=args.microbatch or None,
            remat=args.remat,
            parallel_map=parallel_map,
        )
        update, _ = make_update(settings, backend, parallel_map)
        params, state = update(grads, state, params, factors)

    return resident(step, baseline)


def floor(args: argparse.Namespace) -> Side:
    """The matrix products of `ours`, of arrays that are there already."""
    from siglip_ref.tiles import tiles
    from siglip_train.backends import find_backend

    backend = find_backend(args.backend)
    microbatches = tiles("microbatch", args.batch, args.microbatch or args.batch)
    sizes = [microbatch.stop - microbatch.start for microbatch in microbatches]
    products = {n: products_of(config_of(args), n, backend) for n in set(sizes)}

    def run(n: int) -> None:
        for left, right in products[n]:
            left @ right

    def step() -> None:
        with backend.parallel_map() as parallel_map:
            list(parallel_map(run, sizes))

    return resident(step, peak_bytes())


def products_of(
    config: "sr.SiglipConfig", n: int, backend: "Backend"
) -> "list[tuple[Array, Array]]":
    """The factors of all matrix products of n pairs, forward and backward."""
    import numpy as np

    @functools.cache
    def array(*shape: int) -> "Array":
        return backend.asarray(np.ones(shape, dtype=np.float32))

    def dense(rows: int, d_in: int, d_out: int) -> "list[tuple[Array, Array]]":
        x, kernel, dout = array(rows, d_in), array(d_in, d_out), array(rows, d_out)
        return [(x, kernel), (dout, kernel.T), (x.T, dout)]

    def attention(queries: int, keys: int, width: int, heads: int) -> "list[tuple[Array, Array]]":
        inputs = 2 * dense(n * queries, width, width) + 2 * dense(n * keys, width, width)
        q, k = (array(heads, length, width // heads) for length in (queries, keys))
        scores = array(heads, queries, keys)  # of an image at a time, so that they stay in a cache
        forward = [(q, k.mT), (scores, k)]
        backward = [(scores.mT, q), (q, k.mT), (scores, k), (scores.mT, q)]
        return inputs + n * (forward + backward)

    def mlp(rows: int, width: int, hidden: int) -> "list[tuple[Array, Array]]":
        return dense(rows, width, hidden) + dense(rows, hidden, width)

    image, text = config.image, config.text
    patch = 3 * image.patch_size**2
    tokens = (image.image_size // image.patch_size) ** 2
    found = dense(n * tokens, patch, image.width)
    del found[1]  # nobody asks for the derivative by the pixels
    for tower, length in (image, tokens), (text, text.context_length):
        block = attention(length, length, tower.width, tower.num_heads)
        found += tower.depth * (block + mlp(n * length, tower.width, tower.mlp_dim))
    found += attention(1, tokens, image.width, image.num_heads)
    found += mlp(n, image.width, image.mlp_dim)
    return found + dense(n, text.width, text.out_dim)


def jax_ours(args: argparse.Namespace) -> Side:
    import siglip_ref as sr
    from siglip_train.backends import find_backend

    find_backend("jax")
    config = config_of(args)

    def gradients(params: "Tree", images: "Array", tokens: "Array") -> "tuple[Array, Tree]":
        return sr.loss_and_grads(
            params, images, tokens, config, microbatch=args.microbatch or None, remat=args.remat
        )

    return jax_side(args, gradients)


def jax_peer(args: argparse.Namespace) -> Side:
    import jax

    from siglip_ref import losses, model

    config = config_of(args)

    def loss(params: "Tree", images: "Array", tokens: "Array") -> "Array":
        zimg, _ = model.encode_image_fwd(params, images, config)
        ztxt, _ = model.encode_text_fwd(params, tokens, config)
        return losses.sigmoid_loss_fwd(zimg, ztxt, params["t_prime"], params["b"])[0]

    return jax_side(args, jax.value_and_grad(loss))


def jax_side(args: argparse.Namespace, gradients: "Callable[..., tuple[Array, Tree]]") -> Side:
    import jax

    import siglip_ref as sr

    params, images, tokens = jax.tree.map(jax.numpy.asarray, start(args))
    state = sr.optim.adamw_init(params)

    def update(
        params: "Tree", state: sr.optim.AdamState, images: "Array", tokens: "Array"
    ) -> "tuple[Tree, sr.optim.AdamState]":
        _, grads = gradients(params, images, tokens)
        return sr.optim.adamw_update(grads, state, params, lr=1e-3)

    compiled = jax.jit(update).lower(params, state, images, tokens).compile()
    analysis = compiled.memory_analysis()
    size = float(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )

    def step() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(compiled(params, state, images, tokens))

    return Side(step, lambda: (size, size))


def peer(args: argparse.Namespace) -> Side:
    import torch
    import transformers

    baseline = peak_bytes()
    width, depth, mlp_dim, num_heads = SIZES[args.size]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": mlp_dim,
        "num_attention_heads": num_heads,
    }
    vision = transformers.SiglipVisionConfig(image_size=IMAGE, patch_size=PATCH, **sizes)
    text = transformers.SiglipTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        projection_size=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **sizes,
    )
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    images = torch.rand(args.batch, 3, IMAGE, IMAGE) * 2 - 1
    tokens = torch.randint(0, VOCABULARY, (args.batch, CONTEXT))

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, pixel_values=images, return_loss=True).loss.backward()
        optimizer.step()

    return resident(step, baseline)


if __name__ == "__main__":
    main()
