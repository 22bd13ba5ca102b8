"""The projections are what the schedule of the rings comes to, and docs/scaling.md is printed."""

import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_mpi import Counted, communicator, simulate
from siglip_mpi.latency_bandwidth import (
    GATHERED,
    MACHINES,
    PROJECTIONS,
    SIGMOID,
    SOFTMAX,
    Machine,
    hidden_from,
)
from siglip_mpi.project import ROWS, document, slower_than_gathered, tower_operations
from siglip_mpi.traffic import FORMULAS

ROOT = Path(__file__).parents[2]
T_PRIME, B = (np.asarray(x, dtype=np.float32) for x in (1.5, -2.0))
LOSSES = {
    SIGMOID: lambda zimg, ztxt, comm: sr.ring.sigmoid_loss(zimg, ztxt, T_PRIME, B, comm),
    SOFTMAX: lambda zimg, ztxt, comm: sr.ring.softmax_loss(zimg, ztxt, T_PRIME, comm),
    GATHERED: lambda zimg, ztxt, comm: sr.ring.allgather_softmax_loss(zimg, ztxt, T_PRIME, comm),
}
shapes = st.tuples(st.integers(1, 512), st.integers(8, 1152))


# --- the real schedule, recorded and replayed -----------------------------------------------------

happened = threading.local()
"""What the rank of this thread has done: shifts, waits, matrix products, and talks of all ranks."""


class Watched(np.ndarray):
    """An array whose matrix products are recorded."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
        if ufunc is np.matmul:
            rows, inner = plain[0].shape
            happened.events.append(("product", 2 * rows * inner * plain[1].shape[1]))
        return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(Watched)


class Recorded(Counted):
    """A communicator that records when its rank starts a shift, waits for it, or talks to all."""

    def start_shift(self, arrays, *, rows, step):
        before = self.num_bytes
        shift = super().start_shift(arrays, rows=rows, step=step)
        number = sum(event[0] == "shift" for event in happened.events)
        happened.events.append(("shift", number, self.num_bytes - before))
        return RecordedShift(shift, number)

    def sum(self, array):
        happened.events.append(("talk",))
        return super().sum(array)

    def gather(self, values):
        happened.events.append(("talk",))
        return super().gather(values)


class RecordedShift:
    def __init__(self, shift, number):
        self._shift, self._number = shift, number

    def wait(self):
        happened.events.append(("wait", self._number))
        return self._shift.wait()


def recorded(name, world_size, n, d):
    """What every rank does in a loss on a simulated ring."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, world_size, n, d)) / np.sqrt(d)

    def program(mpi):
        happened.events = []
        comm = Recorded(communicator(mpi, timeout=20))
        LOSSES[name](*(x[comm.rank].astype(np.float16).view(Watched) for x in z), comm)
        return happened.events

    return simulate(world_size, program)


def replayed(ranks, machine):
    """Seconds until the last rank is done.

    A rank sends one shift after the other. It goes on when it has started one, and waits until
    the one from its left has arrived and its own has left.
    """
    world_size = len(ranks)
    clock, port, left = ([value] * world_size for value in (0.0, 0.0, 0))
    done_at = {}  # by sender and number
    ranks = [[*events, ("end",)] for events in ranks]
    while True:
        here = [events[at] for at, events in zip(left, ranks, strict=True)]
        if all(event == ("end",) for event in here):
            return max(clock)
        if all(event == ("talk",) for event in here):
            clock = [max(clock) + math.ceil(math.log2(world_size)) * machine.latency] * world_size
            left = [at + 1 for at in left]
            continue
        for rank, event in enumerate(here):
            match event:
                case ("product", operations):
                    clock[rank] += operations / machine.rate
                case ("shift", number, num_bytes):
                    start = max(clock[rank], port[rank])
                    port[rank] = start + machine.latency + num_bytes / machine.bandwidth
                    done_at[rank, number] = port[rank]
                case ("wait", number):
                    needed = [(rank, number), ((rank - 1) % world_size, number)]
                    if not all(key in done_at for key in needed):
                        continue
                    clock[rank] = max(clock[rank], *(done_at[key] for key in needed))
                case _:
                    continue
            left[rank] += 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_a_projection_is_what_the_real_schedule_takes(name, world_size):
    n, d = 4, 8
    ranks = recorded(name, world_size, n, d)
    totals = [
        sum(event[-1] for event in events if event[0] == kind)
        for events in ranks
        for kind in ("shift", "product")
    ]
    formula = {SIGMOID: "sigmoid_ring", SOFTMAX: "softmax_ring", GATHERED: "allgather_softmax"}
    sent = FORMULAS[formula[name]](world_size, n, n, d, 2).num_bytes
    products = {SIGMOID: 3, SOFTMAX: 4, GATHERED: 4}[name] * 2 * n * n * d * world_size
    assert totals == [sent, products] * world_size
    # From where messages are all that counts to where products are, and in between.
    for latency, bandwidth, peak in itertools.product(
        (0.0, 1.0, 30.0), (1.0, 30.0), 10.0 ** np.arange(0, 6)
    ):
        machine = Machine("", peak, latency, bandwidth, "")
        found = PROJECTIONS[name](machine, world_size, n, d)
        assert found.seconds == pytest.approx(replayed(ranks, machine), rel=1e-12)
        assert found.compute == pytest.approx(products / machine.rate, rel=1e-12)


# --- the model and its page -----------------------------------------------------------------------


@given(shapes, st.integers(2, 60_000), st.sampled_from(MACHINES))
def test_a_ring_holds_the_same_on_any_number_of_devices_and_a_gather_does_not(
    shape, world_size, machine
):
    for name, projection in PROJECTIONS.items():
        few, many = (projection(machine, count, *shape) for count in (world_size, 2 * world_size))
        if name == "softmax, all gathered":
            assert many.num_bytes == 2 * few.num_bytes
        else:
            assert many.num_bytes == few.num_bytes
        assert 0 <= many.waiting <= many.seconds
        assert many.seconds > few.seconds


def test_one_device_waits_for_nobody():
    for projection in PROJECTIONS.values():
        assert projection(MACHINES[0], 1, 256, 768).waiting == 0


def test_the_operations_of_the_towers_are_six_times_kernels_times_tokens_and_the_attention():
    config = sr.variants["B/16-256"]
    kernels = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 12 * 768 * (256**2 + 64**2)
    assert tower_operations(config) == 6 * kernels * (256 + 64) + attention


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("d", [64, 768, 1152])
def test_a_block_takes_as_long_as_the_shifts_beside_it_from_as_many_pairs_on_as_is_said(machine, d):
    n = hidden_from(machine, d)
    last_hop = machine.transfer(4 * n * d)
    collectives = 2 * 3 * machine.latency

    def waiting(pairs):
        return PROJECTIONS[SIGMOID](machine, 8, pairs, d).waiting

    assert waiting(n) == pytest.approx(last_hop + collectives, rel=1e-9)
    assert waiting(n - 1) > machine.transfer(4 * (n - 1) * d) + collectives


def test_a_step_is_the_towers_the_loss_and_the_sum_of_the_gradients():
    row = next(row for row in ROWS if row[1:] == ("B/16-256", 256, 64))
    gradients = 4 * sr.num_params(sr.variants["B/16-256"])
    hops = 2 * 63 * (row.machine.latency + gradients / 64 / row.machine.bandwidth)
    assert row.sum_of_gradients == pytest.approx(hops)
    assert row.step(SIGMOID) == pytest.approx(row.towers + row.loss(SIGMOID).seconds + hops)


def test_the_page_names_every_row_in_which_a_ring_is_not_faster_and_no_other():
    page = (ROOT / "docs" / "scaling.md").read_text()
    for name in (SIGMOID, SOFTMAX):
        listed = page.partition(f"The {name} takes as long as the gathered softmax")[2]
        lines = listed.split("\n\n")[1].splitlines()
        named = set()
        for line in lines:
            title, _, counts = line.removeprefix("- ").rpartition(": ")
            for row in ROWS:
                if title == f"{row.variant}, {row.n} pairs on each {row.machine.name}" and (
                    counts.startswith("any")
                    or f"{row.world_size:,}" in counts.removesuffix(" devices").split(", ")
                ):
                    named.add(row)
        assert named == {row for row in ROWS if slower_than_gathered(row, name)}
        assert {row.n for row in named} == {256}


def test_what_the_page_on_the_ring_says_of_the_projections_is_so():
    few, many = ([row for row in ROWS if row.n == n] for n in (256, 4096))
    assert all(slower_than_gathered(row, SOFTMAX) for row in few)
    assert sum(slower_than_gathered(row, SIGMOID) for row in few) > len(few) / 2
    for name in (SIGMOID, SOFTMAX):
        assert not any(slower_than_gathered(row, name) for row in many)
    for row in many:
        gain = 1 - row.step(SIGMOID) / row.step(GATHERED)
        assert (gain < 0.01) == (row.world_size <= 64)


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs" / "scaling.md").read_text() == document()
