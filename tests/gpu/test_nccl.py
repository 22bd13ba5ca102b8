"""A ring of one device over the real NCCL."""

import numpy as np

import siglip_ref as sr
from siglip_mpi import communicator, simulate
from strategies import pairing


def alone(adapter):
    """The communicator of a ring of one device."""
    return adapter.NcclCommunicator(simulate(1, communicator)[0])


def test_a_ring_of_one_gives_the_loss_of_one_device(adapter, cupy_backend):
    comm = alone(adapter)
    assert comm.gather((3, 4)) == ((3, 4),)
    args = pairing(np.random.default_rng(0), 9, 7, 5)
    want, grads = sr.losses.tiled_sigmoid_loss(*args)
    loss, got = sr.ring.sigmoid_loss(
        *map(cupy_backend.asarray, args), comm, block_loss=adapter.tiled_sigmoid_loss
    )
    np.testing.assert_allclose(cupy_backend.to_numpy(loss), want, rtol=1e-12)
    for x, wanted in zip(got, grads, strict=True):
        np.testing.assert_allclose(cupy_backend.to_numpy(x), wanted, rtol=0, atol=1e-12)


def test_arrays_that_a_device_sends_to_itself_arrive(adapter, cupy_backend):
    comm = alone(adapter)
    for dtype in (np.float16, np.float32, np.float64):
        sent = np.arange(12, dtype=dtype).reshape(4, 3)
        (came,) = comm.start_shift((cupy_backend.asarray(sent),), rows=4, step=0).wait()
        np.testing.assert_array_equal(cupy_backend.to_numpy(came), sent)
