"""What the rings send, counted, is what the formulas of docs/ring.md say."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import siglip_ref as sr
from backends import NUMPY, library
from siglip_mpi import Counted, communicator, memory, simulate
from siglip_mpi.count import main
from siglip_mpi.traffic import FORMULAS, Traffic

D, N, M = 5, 2, 3
DOCUMENT = Path(__file__).parents[2] / "docs" / "ring.md"
TITLES = {
    "sigmoid on the ring": "sigmoid_ring",
    "softmax on the ring": "softmax_ring",
    "softmax, all gathered": "allgather_softmax",
}


class Still(NamedTuple):
    """A communicator that sends nothing."""

    rank: int
    world_size: int

    def start_shift(self, arrays, *, rows, step):
        pass


def sigmoid_ring(zimg, ztxt, comm, asarray):
    sr.ring.sigmoid_loss(zimg, ztxt, asarray(1.5), asarray(-2.0), comm, tile=2)


def softmax_ring(zimg, ztxt, comm, asarray):
    sr.ring.softmax_loss(zimg, ztxt, asarray(1.5), comm, tile=2)


def allgather_softmax(zimg, ztxt, comm, asarray):
    sr.ring.allgather_softmax_loss(zimg, ztxt, asarray(1.5), comm)


LOSSES = {loss.__name__: loss for loss in (sigmoid_ring, softmax_ring, allgather_softmax)}


def counts_of(loss, world_size, dtype, asarray=np.asarray):
    z = np.random.default_rng(0).standard_normal((world_size, N + M, D)) / np.sqrt(D)

    def program(mpi):
        comm = Counted(communicator(mpi, timeout=20))
        zimg, ztxt = (asarray(x.astype(dtype)) for x in np.split(z[comm.rank], [N]))
        loss(zimg, ztxt, comm, lambda x: asarray(np.asarray(x, dtype=np.float32)))
        return Traffic(comm.messages, comm.num_bytes, comm.summed)

    return simulate(world_size, program)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_counted_as_float16_is(name):
    torch = library("torch")
    counted = counts_of(
        LOSSES[name],
        2,
        np.float32,
        lambda x: torch.asarray(x).bfloat16() if np.ndim(x) else torch.asarray(x),
    )
    assert counted == [FORMULAS[name](2, N, M, D, 2)] * 2


def test_every_loss_on_a_ring_has_a_formula():
    assert LOSSES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_every_rank_sends_what_the_formula_says(name, world_size, dtype):
    expected = FORMULAS[name](world_size, N, M, D, np.dtype(dtype).itemsize)
    assert counts_of(LOSSES[name], world_size, dtype) == [expected] * world_size


@pytest.mark.parametrize("name", ["torch", "array_api_strict"])
def test_arrays_of_other_libraries_are_counted_alike(name):
    asarray = library(name).asarray
    expected = FORMULAS["sigmoid_ring"](2, N, M, D, 4)
    assert counts_of(sigmoid_ring, 2, np.float32, asarray) == [expected] * 2


# --- what docs/ring.md says -----------------------------------------------------------------------


def documented(title):
    """The rows of the table in a section, by the name of their formula."""
    section = DOCUMENT.read_text("utf-8").partition(f"## {title}")[2].partition("##")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line]
    return {TITLES[title]: cells for title, *cells in rows[2:]}


def value(formula, **quantities):
    """A formula as it is printed, in numbers: what stands side by side is multiplied."""
    formula = formula.replace("′", "_").replace("−", "-")
    tokens = re.findall(r"\w+|[-+()]", formula)
    assert "".join(tokens) == formula.replace(" ", "")
    product = [tokens[0]]
    for left, right in itertools.pairwise(tokens):
        operands = left not in "+-(" and right not in "+-)"
        product += ["*", right] if operands else [right]
    return eval("".join(product), {}, quantities)


def test_a_printed_formula_is_read_as_it_is_meant():
    assert value("2 (W − 1)", W=4) == 6
    assert value("(W − 1) m (2 d s + 8 s′)", W=3, m=5, d=7, s=2, s_=4) == 2 * 5 * (28 + 32)


SHAPES = [(1, 2, 3, 5), (2, 2, 3, 5), (7, 11, 13, 768)]


@pytest.mark.parametrize("title", ["What a device sends", "What a device holds"])
def test_the_document_has_a_row_for_every_formula(title):
    assert documented(title).keys() == FORMULAS.keys() == memory.FORMULAS.keys()


@pytest.mark.parametrize("element", [8, 4, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_document_says_what_a_device_holds_as_the_formula_does(name, element):
    num_bytes, more = documented("What a device holds")[name]
    for world_size, n, m, d in SHAPES:
        quantities = {"W": world_size, "n": n, "m": m, "d": d, "s": element, "s_": max(element, 4)}
        said = value(num_bytes, **quantities) + (element < 4) * value(more, **quantities)
        assert said == memory.FORMULAS[name](world_size, n, m, d, element)


@pytest.mark.parametrize("element", [8, 4, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_document_says_what_the_formula_does(name, element):
    messages, num_bytes, summed = documented("What a device sends")[name]
    number, _, which = summed.partition(": ")
    for world_size, n, m, d in SHAPES:
        quantities = {"W": world_size, "n": n, "m": m, "d": d, "s": element, "s_": max(element, 4)}
        said = Traffic(value(messages, **quantities), value(num_bytes, **quantities), int(number))
        assert said == FORMULAS[name](world_size, n, m, d, element)
        assert said.summed == len(which.split(", "))


@pytest.mark.parametrize("d", [512, 768, 1152])
def test_in_float32_softmax_sends_half_as_much_again_and_gathering_as_much_as_the_sigmoid(d):
    sigmoid, softmax, gathered = (
        FORMULAS[name](8, 64, 64, d, 4).num_bytes
        for name in ("sigmoid_ring", "softmax_ring", "allgather_softmax")
    )
    assert softmax / sigmoid == pytest.approx(1.5, rel=0.01)
    assert gathered / sigmoid == pytest.approx(1.0, rel=0.01)


def test_the_counts_are_said_in_words():
    comm = Counted(simulate(1, communicator)[0])
    comm.sum(NUMPY.asarray([1.0, 2.0]))
    assert (
        str(comm) == "rank 0 of 1: 0 messages of 0 bytes sent on, 2 numbers summed over the ranks"
    )


def test_the_command_counts_a_run_and_shows_the_formula_beside_it(capsys):
    main(["--world-size", "3", "--pairs", "4", "--width", "8", "--dtype", "float16"])
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    for name, formula in FORMULAS.items():
        messages, num_bytes, summed = formula(3, 4, 4, 8, 2)
        cells = [cell.strip() for cell in rows[name].split("|")[2:-1]]
        assert cells == [f"{messages:,}", f"{num_bytes:,}", f"{num_bytes:,}", str(summed)]


def test_the_command_shows_the_rank_that_sends_most(capsys, monkeypatch):
    def lazy(zimg, ztxt, comm):
        for _ in range(comm.rank):
            comm.start_shift((ztxt,), rows=len(ztxt), step=0)

    monkeypatch.setattr("siglip_mpi.count.LOSSES", {"sigmoid_ring": lazy})
    monkeypatch.setattr("siglip_mpi.count.communicator", lambda mpi: Still(mpi.Get_rank(), 3))
    main(["--world-size", "3", "--pairs", "4", "--width", "8"])
    assert "| sigmoid_ring | 2 | 256 |" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--world-size", "--pairs", "--width"])
def test_the_command_wants_numbers_above_0(option, capsys):
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"{option}: must be at least 1, got 0" in capsys.readouterr().err
