"""The losses on a ring: whatever the sharding, they are those of a single device."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ring_program
import siglip_mpi
import siglip_ref as sr
from backends import BACKENDS, library
from ring_program import COUNTS, program
from siglip_mpi import AbortedError, RingError, communicator, simulate
from siglip_spec import check_subject
from siglip_spec.operations import Answer
from siglip_spec.subject import RefusedError

T_PRIME, B = np.asarray(1.5), np.asarray(-2.0)
PROGRAM = Path(ring_program.__file__)
LIBRARIES = [backend for backend in BACKENDS if not backend.jit]


def unit_rows(rng, n, d):
    z = rng.standard_normal((n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def on_a_ring(counts, text_counts, zimg, ztxt, asarray=np.asarray, **options):
    """Both losses on a simulated ring: the scalars of rank 0, and the gradients joined."""
    images, texts = (
        [asarray(part) for part in np.split(z, np.cumsum(c)[:-1])]
        for z, c in ((zimg, counts), (ztxt, text_counts))
    )

    def rank_program(mpi):
        comm = communicator(mpi, timeout=20)
        shards = images[comm.rank], texts[comm.rank], asarray(T_PRIME)
        return (
            sr.ring.sigmoid_loss(*shards, asarray(B), comm, **options),
            sr.ring.softmax_loss(*shards, comm, **options),
        )

    return list(zip(*simulate(len(counts), rank_program), strict=True))


def assert_same(ranks, whole, to_numpy=np.asarray, tolerance=1e-12):
    loss, grads = whole
    for found, found_grads in ranks:
        assert abs(float(found) - float(loss)) <= tolerance * max(1, abs(float(loss)))
        for name in ("dt_prime", "db"):
            if hasattr(grads, name):
                difference = abs(float(getattr(found_grads, name)) - float(getattr(grads, name)))
                assert difference <= tolerance * 10
    for name in ("dzimg", "dztxt"):
        joined = np.concatenate([to_numpy(getattr(g, name)) for _, g in ranks])
        np.testing.assert_allclose(joined, getattr(grads, name), rtol=0, atol=tolerance)


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=8), tile=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_any_sharding_gives_the_loss_and_gradients_of_a_single_device(counts, tile):
    rng = np.random.default_rng(sum(counts) + 100 * tile)
    zimg, ztxt = unit_rows(rng, sum(counts), 3), unit_rows(rng, sum(counts), 3)
    sigmoid, softmax = on_a_ring(counts, counts, zimg, ztxt, tile=tile)
    assert_same(sigmoid, sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B))
    assert_same(softmax, sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME))


@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_world_size_even_or_odd_gives_the_same(world_size):
    rng = np.random.default_rng(world_size)
    counts = [1 + (3 * rank) % 4 for rank in range(world_size)]
    zimg, ztxt = unit_rows(rng, sum(counts), 5), unit_rows(rng, sum(counts), 5)
    sigmoid, softmax = on_a_ring(counts, counts, zimg, ztxt)
    assert_same(sigmoid, sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B))
    assert_same(softmax, sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME))


def test_images_and_texts_may_be_sharded_otherwise():
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 6, 4), unit_rows(rng, 6, 4)
    sigmoid, softmax = on_a_ring((3, 1, 2), (2, 2, 2), zimg, ztxt)
    assert_same(sigmoid, sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B))
    assert_same(softmax, sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME))


def test_pairs_get_global_indices():
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 7, 4), unit_rows(rng, 7, 4)
    groups = np.asarray([0, 1, 0, 2, 1, 0, 3])
    pairs = sr.losses.same_group(groups, groups)
    sigmoid, softmax = on_a_ring((3, 2, 2), (3, 2, 2), zimg, ztxt, pairs=pairs)
    assert_same(sigmoid, sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B, pairs=pairs))
    assert_same(softmax, sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME, pairs=pairs))


@pytest.mark.parametrize("backend", LIBRARIES, ids=lambda backend: backend.name)
def test_arrays_of_every_library_keep_their_library_and_device(backend):
    backend.require()
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 6, 4), unit_rows(rng, 6, 4)
    # A message and an array API version that is set for a thread do not go together.
    sigmoid, softmax = on_a_ring((3, 1, 2), (3, 1, 2), zimg, ztxt, asarray=backend.asarray)
    home = type(backend.asarray(zimg))
    assert all(isinstance(grads.dztxt, home) for _, grads in sigmoid)
    whole = sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B)
    assert_same(sigmoid, whole, to_numpy=backend.to_numpy)
    whole = sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME)
    assert_same(softmax, whole, to_numpy=backend.to_numpy)


def test_float16_shards_have_their_gradients_summed_in_float32():
    rng = np.random.default_rng(0)
    zimg, ztxt = (unit_rows(rng, 8, 4).astype(np.float16) for _ in "xy")
    sigmoid, _ = on_a_ring((2, 2, 2, 2), (2, 2, 2, 2), zimg, ztxt)
    wide = [z.astype(np.float64) for z in (zimg, ztxt)]
    _, grads = sr.losses.tiled_sigmoid_loss(*wide, T_PRIME, B)
    joined = np.concatenate([g.dztxt for _, g in sigmoid])
    assert joined.dtype == np.float16
    np.testing.assert_allclose(joined, grads.dztxt, rtol=2.0**-10, atol=2.0**-20)


class RingSubject:
    """The ring on simulated ranks, as a subject of the conformance kit."""

    name, dtype = "sr.ring on simulated ranks", "float64"

    def __init__(self):
        self.expected_failures = {}

    def claims(self, operation):
        return operation in ("ring_sigmoid_loss", "ring_softmax_loss")

    claims_gradient = claims

    def answer(self, case):
        zimg, ztxt = case.inputs["zimg"], case.inputs["ztxt"]
        scalars = [case.inputs[name] for name in ("t_prime", "b") if name in case.inputs]
        loss = {
            "ring_sigmoid_loss": sr.ring.sigmoid_loss,
            "ring_softmax_loss": sr.ring.softmax_loss,
        }

        def rank_program(mpi):
            comm = communicator(mpi, timeout=20)
            rank = str(comm.rank)
            return loss[case.operation](zimg[rank], ztxt[rank], *scalars, comm)

        try:
            ranks = simulate(len(zimg), rank_program)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        dloss = case.cotangents["loss"]
        grad = {
            f"{name}/{rank}": dloss * getattr(grads, name)
            for rank, (_, grads) in enumerate(ranks)
            for name in ("dzimg", "dztxt")
        }
        value, grads = ranks[0]
        for name in grads._fields[2:]:
            grad[name] = dloss * getattr(grads, name)
        return Answer({"loss": value}, grad, {})


def test_the_ring_conforms_to_the_spec():
    report = check_subject(RingSubject(), "ring")
    assert report.counts()["failed"] == 0
    assert report.counts()["passed"] > 90
    assert max(record.score or 0 for record in report.records) < 0.5


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "out of luck"),
        ("hangs", r"rank 1 did nothing for 3 s; rank 2 waited for it in ring step \d"),
        ("nan", r"rank 1 sent a number that is not finite to rank 2 in ring step \d"),
        # Both neighbours of the rank notice, and either may be the first.
        ("skips", r"rank [01] sent \d axes of \w+ in ring step 0, where rank [12] has \d axes of"),
        ("dtype", r"rank [01] sent 2 axes of \w+ in ring step \d+, where rank [12] has 2 axes of"),
        ("width", "embeddings must have one size on all ranks, got 5 on rank 0 and 3 on rank 1"),
    ],
)
def test_a_rank_that_fails_ends_the_others_and_is_named(fault, message):
    start = time.monotonic()
    with pytest.raises((RingError, RuntimeError, ValueError), match=message):
        simulate(len(COUNTS), lambda mpi: program(mpi, fault, 1))
    assert time.monotonic() - start < 60


def test_an_abort_ends_all_ranks():
    def rank_program(mpi):
        if mpi.Get_rank() == 2:
            mpi.Abort(7)
        mpi.Barrier()

    with pytest.raises(AbortedError, match="rank 2 aborted the group with code 7"):
        simulate(4, rank_program)


def test_a_group_needs_a_rank():
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        simulate(0, program)


def test_the_simulated_methods_do_what_mpi_says():
    def rank_program(mpi):
        rank, size = mpi.Get_rank(), mpi.Get_size()
        got = np.empty(1)
        right, left = (rank + 1) % size, (rank - 1) % size
        mpi.Sendrecv(np.asarray([float(rank)]), dest=right, recvbuf=got, source=left)
        total, everything = np.empty(1), np.empty(size)
        mpi.Allreduce(np.asarray([float(rank)]), total)
        mpi.Allgather(np.asarray([float(rank)]), everything)
        mpi.Barrier()
        return float(got[0]), float(total[0]), everything.tolist()

    assert simulate(3, rank_program) == [
        (2.0, 3.0, [0.0, 1.0, 2.0]),
        (0.0, 3.0, [0.0, 1.0, 2.0]),
        (1.0, 3.0, [0.0, 1.0, 2.0]),
    ]


# --- real processes -------------------------------------------------------------------------------


def mpiexec(*arguments, timeout=90):
    library("mpi4py.MPI")
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(len(COUNTS))]
    return subprocess.run(
        [*command, sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.slow
def test_the_same_program_runs_under_mpiexec_with_the_same_numbers():
    run = mpiexec()
    assert run.returncode == 0, run.stderr
    assert ast.literal_eval(run.stdout) == simulate(len(COUNTS), program)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies", "hangs", "nan"])
def test_real_ranks_stop_when_one_of_them_fails(fault):
    start = time.monotonic()
    run = mpiexec(fault, "1")
    assert run.returncode != 0
    assert time.monotonic() - start < 80
    if fault == "nan":
        assert "rank 1 sent a number that is not finite" in run.stderr


def test_the_package_lists_its_names():
    assert siglip_mpi.__all__ == sorted(siglip_mpi.__all__)
