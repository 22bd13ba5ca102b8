"""How the losses scale from 8 to 65,536 devices: `python -m siglip_mpi.project > docs/scaling.md`.

A latency-bandwidth (α–β) model of the schedule that `siglip_ref/ring/` has. A shift, which is all
arrays of one `start_shift`, takes α + x/β for its x bytes; those of a device go one after the
other, in the order in which they are started; a matrix product of f floating point operations takes
f/rate, and shifts that are started before it and waited for after it travel meanwhile. Nothing here
was measured.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import siglip_ref as sr
from siglip_mpi import memory

DEVICES = (8, 64, 512, 4_096, 65_536)
VARIANTS = ("B/16-256", "So400m/14-224")
LOCAL_PAIRS = (4096, 256)
ELEMENT, WIDE = 2, 4  # bytes of a bfloat16 and of a float32
LINE = 4 * WIDE  # bytes of the sums over a line of logits
REACHED = 0.4


class Machine(NamedTuple):
    """Devices in a ring: peak floating point operations a second, seconds, bytes a second."""

    name: str
    peak: float
    latency: float
    bandwidth: float
    source: str

    @property
    def rate(self) -> float:
        """Operations a second that matrix products reach."""
        return REACHED * self.peak

    def transfer(self, num_bytes: float) -> float:
        """Seconds of a shift."""
        return self.latency + num_bytes / self.bandwidth

    def products(self, count: int, n: int, m: int, d: int) -> float:
        """Seconds of matrix products with n m d multiplications and additions each."""
        return count * 2 * n * m * d / self.rate


MACHINES = (
    Machine(
        "H100 over InfiniBand",
        989e12,
        5e-6,
        50e9,
        "[NVIDIA H100 SXM](https://www.nvidia.com/en-us/data-center/h100/): 989 TFLOP/s of dense "
        "bfloat16; [DGX H100](https://docs.nvidia.com/dgx/dgxh100-user-guide/): a port of 400 Gb/s "
        "for each GPU. NVLink inside a node is faster, but a ring is as fast as its slowest link",
    ),
    Machine(
        "TPU v5e over ICI",
        197e12,
        1e-6,
        50e9,
        "[Google Cloud's page on v5e](https://cloud.google.com/tpu/docs/v5e): 197 TFLOP/s of "
        "bfloat16, 400 GB/s of ICI a chip in both directions together, over 4 ports; a ring uses "
        "one port each way. A pod has 256 chips; more than that are here as if ICI went on",
    ),
)


class Projection(NamedTuple):
    """Seconds of a loss with its gradients, those of them spent in products, and bytes held."""

    seconds: float
    compute: float
    num_bytes: int

    @property
    def waiting(self) -> float:
        """Seconds in which a device waits for a message."""
        return self.seconds - self.compute


def sigmoid_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """One rotation of three products a block; texts travel, and gradients behind them."""
    block = machine.products(3, n, n, d)
    seconds = _rotation(
        world_size,
        block,
        texts=machine.transfer(n * d * ELEMENT),
        sums=machine.transfer(n * d * WIDE),
    )
    return Projection(
        seconds + _small_collectives(machine, world_size),
        world_size * block,
        memory.sigmoid_ring(world_size, n, n, d, ELEMENT),
    )


def softmax_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """Two rotations, of one product a block and of three.

    In the first the sums over lines travel behind the texts, in the second with them, and the
    gradients behind.
    """
    collecting, visiting = (machine.products(count, n, n, d) for count in (1, 3))
    seconds = _rotation(
        world_size,
        collecting,
        texts=machine.transfer(n * d * ELEMENT),
        sums=machine.transfer(n * LINE),
    )
    seconds += _rotation(
        world_size,
        visiting,
        texts=machine.transfer(n * d * ELEMENT + n * LINE),
        sums=machine.transfer(n * d * WIDE),
    )
    return Projection(
        seconds + _small_collectives(machine, world_size),
        world_size * (collecting + visiting),
        memory.softmax_ring(world_size, n, n, d, ELEMENT),
    )


def allgather_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """Four products of n x W n: two when images and texts are gathered, two when the sums are.

    The four gathers come one after the other, each in W - 1 hops, with no product beside them.
    """
    compute = machine.products(4, n, world_size * n, d)
    hop = machine.transfer(n * d * ELEMENT) + machine.transfer(n * LINE)
    return Projection(
        compute + 2 * (world_size - 1) * hop + _small_collectives(machine, world_size),
        compute,
        memory.allgather_softmax(world_size, n, n, d, ELEMENT),
    )


SIGMOID, SOFTMAX, GATHERED = "sigmoid on the ring", "softmax on the ring", "softmax, all gathered"
PROJECTIONS = {
    SIGMOID: sigmoid_projection,
    SOFTMAX: softmax_projection,
    GATHERED: allgather_projection,
}


def _rotation(world_size: int, block: float, *, texts: float, sums: float) -> float:
    """Seconds of W blocks, and of the W - 1 shifts of texts and W - 1 of sums around them.

    In the first two steps only texts travel beside a block, in the last one only sums, and in
    those between both, one after the other. The last sums set out after the last block, and a
    device waits for the whole of their hop.
    """
    if world_size == 1:
        return block
    if world_size == 2:
        return max(block, texts) + block + sums
    between = (world_size - 3) * max(block, texts + sums)
    return 2 * max(block, texts) + between + max(block, sums) + sums


def _small_collectives(machine: Machine, world_size: int) -> float:
    """Seconds of gathering the shards' sizes and summing the scalars, in log2(W) hops each."""
    return 2 * math.ceil(math.log2(world_size)) * machine.latency


def hidden_from(machine: Machine, d: int) -> int:
    """Pairs on a device from which a block of the sigmoid takes as long as the shifts beside it.

    The least n with 6 n² d / rate ≥ 2 α + (s + s') n d / β.
    """
    square, linear = machine.products(3, 1, 1, d), (ELEMENT + WIDE) * d / machine.bandwidth
    root = math.sqrt(linear**2 + 8 * square * machine.latency)
    return math.ceil((linear + root) / (2 * square))


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
        yield from rows_where(lambda row, name=name: slower_than_gathered(row, name))
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
