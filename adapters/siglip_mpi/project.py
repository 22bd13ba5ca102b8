"""How the losses scale from 8 to 65,536 devices: `python -m siglip_mpi.project > docs/scaling.md`.

A latency-bandwidth (α–β) model: a message of x bytes takes α + x/β, a matrix product of f floating
point operations takes f/rate, and in a ring step the two overlap. Nothing here was measured.
"""

from collections.abc import Iterator
from typing import NamedTuple

import siglip_ref as sr
from siglip_mpi.traffic import allgather_softmax, sigmoid_ring, softmax_ring

DEVICES = (8, 64, 512, 4_096, 65_536)
VARIANTS = ("B/16-256", "So400m/14-224")
LOCAL_PAIRS = (4096, 256)
ELEMENT = 2  # bytes of a bfloat16
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
        """Seconds of a message."""
        return self.latency + num_bytes / self.bandwidth


MACHINES = (
    Machine(
        "H100 over InfiniBand",
        989e12,
        5e-6,
        50e9,
        "NVIDIA H100 SXM data sheet (989 TFLOP/s dense bfloat16); DGX H100 data sheet "
        "(an NDR port of 400 Gb/s for each GPU). NVLink inside a node is faster, but a ring is as "
        "fast as its slowest link",
    ),
    Machine(
        "TPU v5e over ICI",
        197e12,
        1e-6,
        50e9,
        "Google Cloud's page on v5e (197 TFLOP/s bfloat16, 1,600 Gb/s of ICI for each chip, "
        "which are 4 links of 400 Gb/s); a ring uses one of them",
    ),
)


class Projection(NamedTuple):
    """Seconds of a loss with its gradients, those of them spent waiting, and bytes held."""

    seconds: float
    waiting: float
    num_bytes: float


def sigmoid_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """One rotation of three products a block; texts and gradients travel during the next one."""
    compute = 6 * n * n * d / machine.rate
    return _rotation(
        machine,
        world_size,
        compute,
        sigmoid_ring(world_size, n, n, d, ELEMENT).num_bytes,
        num_bytes=n * d * (3 * ELEMENT + 3 * 4),
    )


def softmax_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """Two rotations, of one product and of three; the messages of both are taken as equal."""
    num_bytes = softmax_ring(world_size, n, n, d, ELEMENT).num_bytes / 2
    held = n * d * (3 * ELEMENT + 3 * 4)
    parts = [
        _rotation(
            machine, world_size, products * 2 * n * n * d / machine.rate, num_bytes, num_bytes=held
        )
        for products in (1, 3)
    ]
    return Projection(sum(p.seconds for p in parts), sum(p.waiting for p in parts), held)


def allgather_projection(machine: Machine, world_size: int, n: int, d: int) -> Projection:
    """Both kinds of embeddings gathered on a ring before four products of n × W n can begin."""
    compute = 8 * n * (world_size * n) * d / machine.rate
    hops = world_size - 1
    sent = allgather_softmax(world_size, n, n, d, ELEMENT).num_bytes
    waiting = hops * machine.transfer(sent / hops) if hops else 0.0
    held = 2 * world_size * n * d * ELEMENT + 2 * n * (world_size * n) * 4
    return Projection(compute + waiting, waiting, held)


PROJECTIONS = {
    "sigmoid on the ring": sigmoid_projection,
    "softmax on the ring": softmax_projection,
    "softmax, all gathered": allgather_projection,
}


def hidden_from(machine: Machine) -> int:
    """Pairs on a device from which its products take as long as its message: 6 n² d to 6 n d."""
    return round(machine.rate / machine.bandwidth)


def _rotation(
    machine: Machine, world_size: int, compute: float, sent: float, *, num_bytes: float
) -> Projection:
    """W blocks of `compute` seconds, and W - 1 hops of `sent` bytes in all, each beside a block."""
    hops = world_size - 1
    hop = machine.transfer(sent / hops) if hops else 0.0
    waiting = hops * max(0.0, hop - compute)
    return Projection(world_size * compute + waiting, waiting, num_bytes)


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


def table(machine: Machine, variant: str, n: int) -> Iterator[str]:
    """Rows of Markdown: each number of devices and each loss."""
    config = sr.variants[variant]
    d = config.image.width
    towers = n * tower_operations(config) / machine.rate
    yield f"### {variant}, {n} pairs on each {machine.name}"
    yield ""
    yield f"Towers: {1e3 * towers:.1f} ms a step."
    yield ""
    yield "| devices | loss | ms | of these waiting | part of the step | MB held |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for world_size in DEVICES:
        for name, projection in PROJECTIONS.items():
            found = projection(machine, world_size, n, d)
            yield (
                f"| {world_size:,} | {name} | {1e3 * found.seconds:,.2f} "
                f"| {found.waiting / found.seconds:.0%} "
                f"| {found.seconds / (found.seconds + towers):.0%} "
                f"| {found.num_bytes / 1e6:,.1f} |"
            )
    yield ""


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
        "| what | value | source |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {m.name} | {m.peak / 1e12:.0f} TFLOP/s peak, {m.bandwidth / 1e9:.0f} GB/s a link each "
        f"way, {1e6 * m.latency:.0f} µs a message | {m.source}; the latency is assumed |"
        for m in MACHINES
    ]
    lines += [
        f"| part of the peak that is reached | {REACHED:.0%} | assumed |",
        "| embeddings, gradients | bfloat16, float32 | bytes sent are those of `traffic.py`, which "
        "the tests hold to counts |",
        "| overlap | on a ring a message travels beside a block's products; a gather comes first "
        "| as `siglip_ref/ring/` does it |",
        "| elementwise work, sums of a few numbers, sums of the towers' gradients | left out | |",
        "",
        "## When the ring does not help",
        "",
        "The ring of the sigmoid saves memory, which stays the same where gathering grows with the "
        "number of devices, and it saves a product. It does not save messages: with few pairs on "
        "a device a block is done before the next texts are there, so the ring waits for most of "
        "its time, and its hops come one after the other as those of a gather do. A message of "
        "bfloat16 texts and float32 gradients hides behind a block's products from (operations a "
        "second) / (bytes a second) pairs on a device on: "
        + ", ".join(f"{hidden_from(m):,} with {m.name}" for m in MACHINES)
        + ". Below that a gather "
        "by a tree, of which this model knows nothing, would need fewer messages. And where the "
        "loss is a small part of the step, no loss makes training much faster.",
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
