"""How long a loss takes on a ring of devices: a latency-bandwidth (α–β) model.

It is one of the schedule that `siglip_ref/ring/` has. A shift, which is all arrays of one
`start_shift`, takes α + x/β for its x bytes; those of a device go one after the other, in the order
in which they are started; a matrix product of f floating point operations takes f/rate, and shifts
that are started before it and waited for after it travel meanwhile. Nothing here was measured.
"""

import math
from typing import NamedTuple

from siglip_mpi import memory

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
