"""What every rank of a ring of devices checks: `mpiexec -n 4 python -m cupy_cases.ring`.

The other tests run it on threads over the stand-in, tests/gpu on the devices that there are.
"""

import numpy as np

import siglip_ref as sr
from cupy_cases.numbers import DTYPES
from strategies import pairing

LOSSES = ("sigmoid_loss", "softmax_loss", "allgather_softmax_loss")


def rows(world_size, start, most):
    """Rows on each rank: between 1 and `most`, and not the same on all of several."""
    return tuple(1 + (start + 2 * rank) % most for rank in range(world_size))


def parts(x, sizes):
    return np.split(x, np.cumsum(sizes)[:-1])


def assert_the_loss_is_that_of_one_device(loss, comm, backend):
    """Loss and gradients of a batch in uneven shards, against those of NumPy on the whole."""
    images = texts = rows(comm.world_size, 0, 3)
    whole, options = sr.losses.tiled_softmax_loss, {}
    if loss == "sigmoid_loss":  # there may be other numbers of texts than of images
        texts = rows(comm.world_size, comm.world_size, 4)
        whole, options = sr.losses.tiled_sigmoid_loss, {"block_loss": backend.sigmoid_loss}
    if loss != "allgather_softmax_loss":
        options["tile"] = 2
    args = pairing(np.random.default_rng(comm.world_size), sum(images), sum(texts), 5, b=-3.0)
    args = args if loss == "sigmoid_loss" else args[:3]
    want_loss, want = whole(*args)
    mine = [parts(z, sizes)[comm.rank] for z, sizes in zip(args, (images, texts), strict=False)]
    there = [backend.asarray(x) for x in (*mine, *args[2:])]
    value, grads = getattr(sr.ring, loss)(*there, comm, **options)
    got = [backend.to_numpy(x) for x in (value, *grads)]
    np.testing.assert_allclose([got[0], *got[3:]], [want_loss, *want[2:]], rtol=1e-12)
    for gradient, wanted, sizes in zip(got[1:3], want[:2], (images, texts), strict=True):
        here = parts(wanted, sizes)[comm.rank]
        np.testing.assert_allclose(gradient, here, rtol=0, atol=1e-13)


def assert_arrays_arrive(dtype, comm, backend):
    """Arrays of a dtype come with the rows of their sender, and are added up."""
    rank, world_size = comm.rank, comm.world_size
    sent = np.full((rank + 1, 2), rank, dtype=dtype)
    left = (rank - 1) % world_size
    (came,) = comm.start_shift((backend.asarray(sent),), rows=left + 1, step=0).wait()
    total = comm.sum(backend.asarray(np.asarray(rank + 0.5, dtype=dtype)))
    came, total = backend.to_numpy(came), backend.to_numpy(total)
    assert came.dtype == total.dtype == dtype
    np.testing.assert_array_equal(came, np.full((left + 1, 2), left, dtype=dtype))
    assert float(total) == world_size**2 / 2
    assert comm.gather((rank, 7)) == tuple((other, 7) for other in range(world_size))


def main():
    import siglip_cupy

    backend = siglip_cupy.CupyBackend()
    with siglip_cupy.world() as comm:
        for loss in LOSSES:
            assert_the_loss_is_that_of_one_device(loss, comm, backend)
        for dtype in DTYPES.values():
            assert_arrays_arrive(dtype, comm, backend)
        if comm.rank == 0:
            print(f"a ring of {comm.world_size} has the numbers of one device")


if __name__ == "__main__":
    main()
