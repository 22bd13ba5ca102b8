"""NumPy on all cores: the tiled loss in place is the core's, whatever the tiles and threads."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_numpy import ThreadedNumpyBackend, tile_loop
from siglip_numpy.threads import num_threads
from siglip_numpy.tile_loop import disjoint_places, smaller, tiled_sigmoid_loss
from siglip_ref import losses
from siglip_ref.backend import Backend
from siglip_spec import check_subject
from strategies import distinct, pairing, seeds
from subjects.tile_loops import OPERATIONS, TileLoop


@pytest.fixture(params=[True, False], ids=["log1p", "log"], autouse=True)
def either_logarithm(request, monkeypatch):
    """The form for processors with a fast log1p, and the one for others."""
    monkeypatch.setattr(tile_loop, "log1p_is_fast", lambda: request.param)


PAIRS = distinct("n", "m", "d", most=40)


def assert_close(got, want, tolerance):
    assert abs(got[0] - want[0]) <= tolerance * abs(want[0])
    for name, wanted in want[1]._asdict().items():
        found = getattr(got[1], name)
        assert found.shape == wanted.shape
        scale = np.max(np.abs(wanted)) + np.max(np.abs(want[1].db))
        assert np.max(np.abs(found - wanted)) <= tolerance * scale, name


def test_it_has_what_a_backend_has():
    backend: Backend = ThreadedNumpyBackend()
    assert backend.name == "numpy"
    assert backend.peak_memory() > 1e6
    assert backend.compile(math.sqrt)(4.0) == 2.0


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_vectors_of_the_kit_are_met(dtype):
    subject = TileLoop(
        "siglip_numpy", ThreadedNumpyBackend().sigmoid_loss, dtype, np.asarray, np.asarray
    )
    report = check_subject(subject, ["loss", "accuracy"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    passed = {record.operation for record in report.records if record.status == "passed"}
    assert passed == set(OPERATIONS)


@given(PAIRS, seeds, st.integers(1, 50))
def test_it_is_the_loss_of_the_core_for_any_sizes_and_tiles(sizes, seed, tile):
    inputs = pairing(np.random.default_rng(seed), **sizes)
    want = losses.tiled_sigmoid_loss(*inputs)
    assert_close(tiled_sigmoid_loss(*inputs, tile=tile), want, 1e-12)


@given(PAIRS, seeds, st.integers(1, 50))
def test_global_indices_and_other_pairs_are_those_of_the_core(sizes, seed, tile):
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    rows, columns = (rng.integers(0, 9, sizes[name]) for name in ("n", "m"))
    for options in (
        {"rows": rows, "columns": columns, "total": 77},
        {"pairs": losses.reweighted(losses.diagonal, 2.0, 0.5), "rows": rows, "columns": columns},
    ):
        want = losses.tiled_sigmoid_loss(*inputs, **options)
        assert_close(tiled_sigmoid_loss(*inputs, **options, tile=tile), want, 1e-12)


@pytest.mark.parametrize("t_prime", [0.0, math.log(100), math.log(2000)])
@pytest.mark.parametrize("b", [-2000.0, -10.0, 0.0, 300.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_neither_overflow_nor_lose_digits(t_prime, b, dtype):
    sizes = {"n": 9, "m": 9, "d": 4}
    inputs = pairing(np.random.default_rng(3), **sizes)
    scalars = np.asarray(t_prime), np.asarray(b)
    want = losses.tiled_sigmoid_loss(*inputs[:2], *scalars)
    narrow = [np.asarray(x, dtype=dtype) for x in (*inputs[:2], *scalars)]
    got = tiled_sigmoid_loss(*narrow)
    # A logit of 2000 in float32 is off by 1e-4.
    assert_close(got, want, 1e-12 if dtype is np.float64 else 2e-3)
    assert got[0].dtype == dtype


def test_the_bits_do_not_depend_on_the_threads():
    inputs = pairing(np.random.default_rng(0), n=203, m=207, d=16)
    want = tiled_sigmoid_loss(*inputs, tile=16)
    got = ThreadedNumpyBackend().sigmoid_loss(*inputs, tile=16)
    assert got[0] == want[0]
    for found, wanted in zip(got[1], want[1], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_inputs_may_be_read_only():
    inputs = pairing(np.random.default_rng(0), n=20, m=20, d=3)
    for array in inputs:
        array.setflags(write=False)
    tiled_sigmoid_loss(*inputs, tile=7)


def test_memory_beside_inputs_and_outputs_does_not_grow_with_the_batch():
    def extra(n):
        inputs = pairing(np.random.default_rng(0), n=n, m=n, d=8)
        tracemalloc.start()
        tiled_sigmoid_loss(*inputs, tile=64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - 2 * inputs.zimg.nbytes  # the two gradients

    assert extra(4096) < extra(512) + 200_000


@given(st.integers(1, 9), st.integers(1, 9))
def test_places_worked_on_side_by_side_share_no_row_and_no_column(n, m):
    groups = list(disjoint_places(n, m))
    for group in groups:
        assert len({i for i, _ in group}) == len({j for _, j in group}) == len(group)
    places = [place for group in groups for place in group]
    assert sorted(places) == [(i, j) for i in range(n) for j in range(m)]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_are_as_large_as_is_asked_but_leave_work_for_two_threads_or_four(tile, count):
    size = smaller(tile, count)
    assert 1 <= size <= min(tile, 1024)
    if tile >= 1024:
        assert -(-count // size) >= min(count, 4 if count >= 2048 else 2)


def test_the_number_of_threads_can_be_limited(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert num_threads() >= 1


@pytest.mark.parametrize("tile", [0, -1, 2.5])
def test_a_tile_that_is_no_positive_integer_is_refused(tile, unchecked):
    inputs = pairing(np.random.default_rng(0), n=2, m=2, d=2)
    with pytest.raises(ValueError, match=f"tile must be a positive integer, got {tile}"):
        tiled_sigmoid_loss(*inputs, tile=tile)
