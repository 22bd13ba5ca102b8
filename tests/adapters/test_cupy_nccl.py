"""The ring over NCCL, with a stand-in for NCCL between threads."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.communicator import Communicator
from strategies import pairing

pytest.importorskip("cupy")
from cupy_stand_in import namespace, nccl

SIZES = {1: ((3,), (4,)), 2: ((3, 2), (1, 4)), 3: ((1, 3, 2), (2, 1, 3)), 4: ((2,) * 4, (2,) * 4)}
"""Rows of images and texts on each rank, by world size."""

every_size = pytest.mark.parametrize("world_size", SIZES)


@pytest.fixture(scope="module")
def adapter():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy


@pytest.fixture(autouse=True)
def quick_faults(monkeypatch):
    """A message that does not come within a second never does."""
    monkeypatch.setattr(nccl.NcclCommunicator, "patience", 1.0)
    yield
    nccl.LATE.clear()


def on_ranks(adapter, world_size, program, timeout=20.0):
    """What `program(comm, backend)` returns or raises on every rank."""
    backend, unique_id = adapter.CupyBackend(), nccl.get_unique_id()

    def rank_program(rank):
        comm = adapter.NcclCommunicator(world_size, unique_id, rank, timeout=timeout)
        assert isinstance(comm, Communicator)
        return program(comm, backend)

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(rank_program, rank) for rank in range(world_size)]
        return [future.exception() or future.result() for future in futures]


def parts(x, sizes):
    return np.split(x, np.cumsum(sizes)[:-1])


@every_size
@pytest.mark.parametrize("tile", [2, 100])
def test_the_ring_gives_the_loss_and_the_gradients_of_one_device(world_size, tile, adapter):
    n, m = (sum(sizes) for sizes in SIZES[world_size])
    zimg, ztxt, t_prime, b = pairing(np.random.default_rng(world_size), n, m, 5, b=-3.0)
    want_loss, want = sr.losses.tiled_sigmoid_loss(zimg, ztxt, t_prime, b)
    shards = [parts(z, sizes) for z, sizes in zip((zimg, ztxt), SIZES[world_size], strict=True)]

    def program(comm, backend):
        mine = [backend.asarray(part[comm.rank]) for part in shards]
        scalars = [backend.asarray(x) for x in (t_prime, b)]
        loss, grads = sr.ring.sigmoid_loss(
            *mine, *scalars, comm, tile=tile, block_loss=adapter.tiled_sigmoid_loss
        )
        return backend.to_numpy(loss), [backend.to_numpy(x) for x in grads]

    results = on_ranks(adapter, world_size, program)
    for loss, (_, _, dt_prime, db) in results:
        np.testing.assert_allclose([loss, dt_prime, db], [want_loss, *want[2:]], rtol=1e-12)
    for which in (0, 1):
        got = np.concatenate([grads[which] for _, grads in results])
        np.testing.assert_allclose(got, want[which], rtol=0, atol=1e-13)


@pytest.mark.parametrize("loss", ["softmax_loss", "allgather_softmax_loss"])
def test_the_softmax_goes_round_too(loss, adapter):
    world_size = 3
    zimg, ztxt, t_prime, _ = pairing(np.random.default_rng(9), 6, 6, 5)
    want_loss, want = sr.losses.tiled_softmax_loss(zimg, ztxt, t_prime)
    sizes = (2, 2, 2)

    def program(comm, backend):
        mine = [backend.asarray(parts(z, sizes)[comm.rank]) for z in (zimg, ztxt)]
        value, grads = getattr(sr.ring, loss)(*mine, backend.asarray(t_prime), comm)
        return backend.to_numpy(value), backend.to_numpy(grads[0])

    results = on_ranks(adapter, world_size, program)
    assert [float(value) for value, _ in results] == pytest.approx(
        [float(want_loss)] * 3, rel=1e-12
    )
    got = np.concatenate([dzimg for _, dzimg in results])
    np.testing.assert_allclose(got, want[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_arrays_of_every_dtype_arrive_with_the_rows_of_their_sender(dtype, adapter):
    def program(comm, backend):
        sent = np.full((comm.rank + 1, 2), comm.rank, dtype=dtype)
        left = (comm.rank - 1) % 3
        (came,) = comm.start_shift((backend.asarray(sent),), rows=left + 1, step=0).wait()
        total = comm.sum(backend.asarray(np.asarray(comm.rank + 0.5, dtype=dtype)))
        return backend.to_numpy(came), backend.to_numpy(total), comm.gather((comm.rank, 7))

    for rank, (came, total, numbers) in enumerate(on_ranks(adapter, 3, program)):
        left = (rank - 1) % 3
        assert came.dtype == total.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(came, np.full((left + 1, 2), left, dtype=dtype))
        assert float(total) == 4.5
        assert numbers == ((0, 7), (1, 7), (2, 7))


def test_a_number_that_is_not_finite_is_reported_with_the_rank_and_the_step(adapter):
    def program(comm, backend):
        sent = np.asarray([[np.inf if comm.rank == 1 else 1.0]])
        return comm.start_shift((backend.asarray(sent),), rows=1, step=4).wait()

    results = on_ranks(adapter, 3, program)
    assert [isinstance(result, tuple) for result in results] == [True, True, False]
    assert str(results[2]) == ("rank 2: rank 1 sent a number that is not finite in ring step 4")


def test_a_rank_that_does_not_send_is_named_after_the_timeout(adapter):
    def program(comm, backend):
        if comm.rank == 1:
            return None
        return comm.start_shift((backend.asarray(np.ones((1, 1))),), rows=1, step=2).wait()

    results = on_ranks(adapter, 3, program, timeout=0.2)
    assert results[1] is None
    assert str(results[2]) == "rank 2: waited for rank 1 in ring step 2 for 0.2 s"


def test_an_error_of_nccl_ends_the_wait(adapter, monkeypatch):
    def broken(self):
        raise nccl.NcclError("NCCL_ERROR_REMOTE_ERROR: peer is gone")

    monkeypatch.setattr(nccl.NcclCommunicator, "check_async_error", broken)
    nccl.LATE.set()

    def program(comm, backend):
        return comm.start_shift((backend.asarray(np.ones((1, 1))),), rows=1, step=3).wait()

    for rank, result in enumerate(on_ranks(adapter, 2, program)):
        assert str(result) == (f"rank {rank}: NCCL_ERROR_REMOTE_ERROR: peer is gone in ring step 3")


def test_a_dtype_that_nccl_has_not_is_refused(adapter):
    def program(comm, backend):
        sent = backend.asarray(np.ones((1, 1), dtype=np.complex128))
        return comm._buffer(sent)

    (error,) = on_ranks(adapter, 1, program)
    assert isinstance(error, TypeError)
    assert "array must have a dtype out of int32, " in str(error)
    assert str(error).endswith("got complex128")
