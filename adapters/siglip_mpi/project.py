"""How the losses scale from 8 to 65,536 devices: `python -m siglip_mpi.project > docs/scaling.md`.

The times are those of `latency_bandwidth.py`, the bytes those of `memory.py`.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import siglip_ref as sr
from siglip_mpi.latency_bandwidth import (
    ELEMENT,
    GATHERED,
    LINE,
    MACHINES,
    PROJECTIONS,
    REACHED,
    SIGMOID,
    SOFTMAX,
    WIDE,
    Machine,
    Projection,
    hidden_from,
)

DEVICES = (8, 64, 512, 4_096, 65_536)
VARIANTS = ("B/16-256", "So400m/14-224")
LOCAL_PAIRS = (4096, 256)


def tower_operations(config: sr.SiglipConfig) -> float:
    """Floating point operations of both towers for a pair, forward and backward.

    Twice as many as multiplications; backward takes twice the forward.
    """
    image, text = config.image, config.text
    towers = ((image, image.grid**2), (text, text.context_length))
    return float(sum(3 * _forward_operations(tower, length) for tower, length in towers))


def _forward_operations(tower: sr.ImageConfig | sr.TextConfig, length: int) -> int:
    """Linear maps and attention of all blocks; embeddings and heads are left out."""
    d, f = tower.width, tower.mlp_dim
    return tower.depth * (2 * length * (4 * d**2 + 2 * d * f) + 4 * length**2 * d)


@cache
def _num_params(variant: str) -> int:
    return sr.num_params(sr.variants[variant])


class Row(NamedTuple):
    """A number of devices, and what runs on them."""

    machine: Machine
    variant: str
    n: int
    world_size: int

    def loss(self, name: str) -> Projection:
        """The projection of a loss."""
        width = sr.variants[self.variant].image.width
        return PROJECTIONS[name](self.machine, self.world_size, self.n, width)

    @property
    def towers(self) -> float:
        """Seconds of the towers, forward and backward."""
        return self.n * tower_operations(sr.variants[self.variant]) / self.machine.rate

    @property
    def sum_of_gradients(self) -> float:
        """Seconds of summing the towers' gradients: 2 (W - 1) hops of a W-th of them."""
        part = WIDE * _num_params(self.variant) / self.world_size
        return 2 * (self.world_size - 1) * self.machine.transfer(part)

    def step(self, name: str) -> float:
        """Seconds of a training step but for its optimizer."""
        return self.towers + self.loss(name).seconds + self.sum_of_gradients


ROWS = tuple(
    Row(machine, variant, n, world_size)
    for machine in MACHINES
    for variant in VARIANTS
    for n in LOCAL_PAIRS
    for world_size in DEVICES
)


def rows_where(holds: Callable[[Row], bool]) -> list[str]:
    """A list in Markdown of the rows of the tables of which something holds, or "None."."""
    found: dict[str, list[int]] = {}
    for row in ROWS:
        if holds(row):
            title = f"{row.variant}, {row.n} pairs on each {row.machine.name}"
            found.setdefault(title, []).append(row.world_size)
    return [f"- {title}: {_devices(counts)}" for title, counts in found.items()] or ["None."]


def _devices(counts: list[int]) -> str:
    """Some of the numbers of devices in words."""
    if counts == list(DEVICES):
        return "any number of devices"
    return ", ".join(f"{count:,}" for count in counts) + " devices"


def table(machine: Machine, variant: str, n: int) -> Iterator[str]:
    """Rows of Markdown: each number of devices and each loss."""
    rows = [row for row in ROWS if row[:3] == (machine, variant, n)]
    yield f"### {variant}, {n} pairs on each {machine.name}"
    yield ""
    yield f"Towers: {1e3 * rows[0].towers:.1f} ms a step."
    yield ""
    yield (
        "| devices | loss | ms | of these waiting | MB held | sum of gradients, ms | step, ms "
        "| part of the step |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        for name in PROJECTIONS:
            loss, step = row.loss(name), row.step(name)
            yield (
                f"| {row.world_size:,} | {name} | {1e3 * loss.seconds:,.2f} "
                f"| {loss.waiting / loss.seconds:.0%} | {loss.num_bytes / 1e6:,.1f} "
                f"| {1e3 * row.sum_of_gradients:,.1f} | {1e3 * step:,.1f} "
                f"| {loss.seconds / step:.1%} |"
            )
    yield ""


def assumptions() -> Iterator[str]:
    """Rows of Markdown: what the model takes for granted."""
    yield "| what | value | source |"
    yield "| --- | --- | --- |"
    for m in MACHINES:
        yield (
            f"| {m.name} | {m.peak / 1e12:.0f} TFLOP/s peak, {m.bandwidth / 1e9:.0f} GB/s a link "
            f"each way | {m.source} |"
        )
    latencies = ", ".join(f"{1e6 * m.latency:.0f} µs with {m.name}" for m in MACHINES)
    yield f"| latency of a shift | {latencies} | assumed |"
    yield f"| part of the peak that is reached | {REACHED:.0%} | assumed |"
    yield (
        "| embeddings; gradients and sums over lines | bfloat16; float32 | as the losses send them "
        "|"
    )
    yield (
        "| a shift | all arrays of one `start_shift` pay one latency; the shifts of a device go "
        "one after the other, in the order in which they are started | as the communicators of "
        "`siglip_torch` and `siglip_cupy` do it: one group of sends and receives a shift, one "
        "thread or stream for all |"
    )
    yield (
        "| overlap | shifts of a rotation travel beside a block's products, but for the last one "
        "of the gradients; the four gathers, of images, texts and the sums over the lines of both, "
        "come one after the other with nothing beside them | as `siglip_ref/ring/` does it; the "
        "tests walk through its shifts, waits and products and get the same times |"
    )
    yield (
        "| sizes of the shards, sums of the scalars | log2(W) latencies each, for every loss | as "
        "`siglip_mpi` and `siglip_torch` do it |"
    )
    yield (
        "| elementwise work; headers; what they and scalars take beside the latency | left out | |"
    )
    yield (
        "| step | towers, then the loss, then the sum of the towers' gradients in float32, with "
        "no overlap; the optimizer and reading data are left out | as `sr.loss_and_grads` does it; "
        "the sum as `siglip_mpi` does it, in 2 (W − 1) hops of a W-th each |"
    )
    yield (
        "| towers | matrix products of their blocks, forward and twice that backward, at the same "
        "part of the peak | counted from the configuration |"
    )
    per_device = ", ".join(
        f"{4 * WIDE * _num_params(variant) / 1e9:.1f} GB with {variant}" for variant in VARIANTS
    )
    yield (
        "| MB held | the most that a device holds at once for the loss, its gradients among it, "
        "beside its own embeddings, as `siglip_ref/ring/` holds it on NumPy; kernels may hold "
        "less. Of a gathering the embeddings are 2 W n d s, and the rest are logits. The towers "
        f"are not in it: parameters, gradients and AdamW's two moments in float32 are {per_device} "
        "on every device, and the towers' activations are not modelled | `memory.py`, which the "
        "tests hold to measurements |"
    )


def slower_than_gathered(row: Row, name: str) -> bool:
    """Whether a loss on the ring takes as long as the gathered softmax, or longer."""
    return row.loss(name).seconds >= row.loss(GATHERED).seconds


def verdict() -> Iterator[str]:
    """When the ring does not help, from the numbers of the tables, as lines of Markdown."""

    def gain(row: Row) -> float:
        return (row.loss(GATHERED).seconds - row.loss(SIGMOID).seconds) / row.step(GATHERED)

    def without_latency(row: Row) -> Row:
        return row._replace(machine=row.machine._replace(latency=0.0))

    for name in (SOFTMAX, SIGMOID):
        yield f"The {name} takes as long as the gathered softmax, or longer, in these rows:"
        yield ""
        yield from rows_where(partial(slower_than_gathered, name=name))
        yield ""
    yield (
        "With few pairs on a device a block is done before the next texts are there, so a device "
        "waits for most of the time, and what counts is what is sent. With n pairs on a device a "
        f"hop of the sigmoid is {ELEMENT + WIDE} n d bytes in two shifts, and the four hops of the "
        f"gathers are {2 * ELEMENT} n d + {2 * LINE} n bytes in four. So the ring pays for more "
        "bytes and the gathers for more latencies, and the latencies are assumed. If there were "
        f"none, the {SIGMOID} would take as long as the gathered softmax, or longer, in these rows:"
    )
    yield ""
    yield from rows_where(lambda row: slower_than_gathered(without_latency(row), SIGMOID))
    yield ""
    yield (
        "A gather that sends its arrays together, or along a tree, would save latencies; this "
        "model has none. The shifts of the sigmoid hide behind a block's products from so many "
        "pairs on a device on: "
        + "; ".join(
            f"{hidden_from(m, sr.variants[variant].image.width):,} with {variant} on {m.name}"
            for m in MACHINES
            for variant in VARIANTS
        )
        + ". Even then a device waits for the last hop of the gradients."
    )
    yield ""
    yield (
        f"The {SIGMOID} makes the whole step less than 1% shorter than the gathered softmax does, "
        "since the loss is a small part of the step or no faster, in these rows:"
    )
    yield ""
    yield from rows_where(lambda row: gain(row) < 0.01)
    yield ""
    yield (
        "What the ring saves is memory: what it holds does not depend on the number of devices, "
        "and what a gathering holds grows with it. A ring holds as much as the gathering, or more, "
        "in these rows:"
    )
    yield ""
    yield from rows_where(
        lambda row: any(
            row.loss(name).num_bytes >= row.loss(GATHERED).num_bytes for name in (SIGMOID, SOFTMAX)
        )
    )


def document() -> str:
    """The whole of docs/scaling.md."""
    lines = [
        "# How the losses would scale",
        "",
        "Printed by `python -m siglip_mpi.project`. These are projections of a latency-bandwidth "
        "model, not measurements.",
        "",
        "## Assumptions",
        "",
        *assumptions(),
        "",
        "## When the ring does not help",
        "",
        *verdict(),
        "",
        "## Tables",
        "",
    ]
    for machine in MACHINES:
        for variant in VARIANTS:
            for n in LOCAL_PAIRS:
                lines += table(machine, variant, n)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Print the document."""
    print(document(), end="")


if __name__ == "__main__":
    main()
