"""The losses on a ring as a compiler sees them: one program for all ranks, none of them a number.

Under `jax.vmap` with a named axis, JAX runs the program on every rank of the axis at once.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from backends import library
from siglip_ref.communicator import Communicator, Shift
from siglip_ref.ring.shards import Shards

T_PRIME, B = np.asarray(1.5), np.asarray(-2.0)


class Arrived:
    def __init__(self, arrays):
        self._arrays = arrays

    def wait(self):
        return self._arrays


class Axis:
    """A communicator over a named axis of JAX: shapes are static, and so all shards are alike."""

    def __init__(self, name, world_size):
        self.name, self.world_size = name, world_size

    @property
    def rank(self):
        return library("jax").lax.axis_index(self.name)

    def start_shift(self, arrays, *, rows, step):  # noqa: ARG002
        lax = library("jax").lax
        ring = [(rank, (rank + 1) % self.world_size) for rank in range(self.world_size)]
        return Arrived(tuple(lax.ppermute(x, self.name, ring) for x in arrays))

    def sum(self, array):
        return library("jax").lax.psum(array, self.name)

    def gather(self, values):
        return (values,) * self.world_size


class Alone:
    """A ring of one, which has nobody to talk to; `sizes` are what it is told of the others."""

    rank, world_size = 0, 1

    def __init__(self, sizes=None):
        self.sizes = sizes

    def start_shift(self, arrays, *, rows, step):  # noqa: ARG002
        raise AssertionError("one rank has nobody to send to")

    def sum(self, array):
        return array

    def gather(self, values):
        return (values,) if self.sizes is None else self.sizes


class Noted(Arrived):
    """A shift that says when it is waited for."""

    def __init__(self, arrays, note):
        super().__init__(arrays)
        self._note = note

    def wait(self):
        self._note()
        return super().wait()


class Recording:
    """Rank 0 of a ring whose other ranks send what it sends; it writes down what happens when."""

    def __init__(self, world_size):
        self.rank, self.world_size = 0, world_size
        self.happened = []

    def start_shift(self, arrays, *, rows, step):  # noqa: ARG002
        number = sum(what.startswith("start") for what in self.happened)
        self.happened.append(f"start {number}")
        return Noted(arrays, lambda: self.happened.append(f"wait {number}"))

    def pairs(self, rows, columns):
        self.happened.append("block")
        return sr.losses.diagonal(rows, columns)

    def sum(self, array):
        return array

    def gather(self, values):
        return (values,) * self.world_size


def unit_rows(rng, n, d):
    z = rng.standard_normal((n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def losses(zimg, ztxt, comm, t_prime=T_PRIME, b=B, **options):
    return (
        sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm, **options),
        sr.ring.softmax_loss(zimg, ztxt, t_prime, comm, **options),
        sr.ring.allgather_softmax_loss(zimg, ztxt, t_prime, comm),
    )


def whole(zimg, ztxt):
    softmax = sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME)
    return sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B), softmax, softmax


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_compiled_for_all_ranks_at_once_it_gives_the_numbers_of_one_device(world_size):
    jax, n, m = library("jax"), 2, 3
    jnp = jax.numpy
    rng = np.random.default_rng(world_size)
    zimg, ztxt = unit_rows(rng, world_size * n, 4), unit_rows(rng, world_size * m, 4)

    def program(images, texts):
        comm = Axis("ranks", world_size)
        return losses(images, texts, comm, jnp.asarray(T_PRIME), jnp.asarray(B), tile=2)

    shards = zimg.reshape(world_size, n, 4), ztxt.reshape(world_size, m, 4)
    found = jax.jit(jax.vmap(program, axis_name="ranks"))(*(jnp.asarray(x) for x in shards))
    for (loss, grads), (true_loss, true_grads) in zip(found, whole(zimg, ztxt), strict=True):
        np.testing.assert_allclose(loss, true_loss, rtol=1e-13)
        for name, true in true_grads._asdict().items():
            got = np.asarray(getattr(grads, name))
            got = got.reshape(true.shape) if true.ndim else got
            np.testing.assert_allclose(got, true, rtol=0, atol=1e-12)


def schedule(world_size, first):
    """One rotation: shifts are numbered from `first` on in the order in which they start."""
    happens, number, sums = [], first, None
    for step in range(world_size):
        texts = number if step < world_size - 1 else None
        if texts is not None:
            happens.append(f"start {texts}")  # the texts of the next step, before this one's block
            number += 1
        happens.append("block")
        if step > 0:
            if sums is not None:
                happens.append(f"wait {sums}")  # has travelled beside the block
            happens.append(f"start {number}")
            sums, number = number, number + 1
        if texts is not None:
            happens.append(f"wait {texts}")
    return happens + ([] if sums is None else [f"wait {sums}"])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rotations", [1, 2], ids=["sigmoid", "softmax"])
def test_the_next_texts_set_out_before_a_block_and_are_waited_for_after_it(rotations, world_size):
    z = unit_rows(np.random.default_rng(0), 2, 3)
    comm = Recording(world_size)
    if rotations == 1:
        sr.ring.sigmoid_loss(z, z, T_PRIME, B, comm, pairs=comm.pairs)
    else:
        sr.ring.softmax_loss(z, z, T_PRIME, comm, pairs=comm.pairs)
    shifts = 2 * (world_size - 1)
    expected = (schedule(world_size, shifts * rotation) for rotation in range(rotations))
    assert comm.happened == list(itertools.chain.from_iterable(expected))


@given(n=st.integers(1, 6), m=st.integers(1, 6), tile=st.integers(1, 7), seed=st.integers(0))
def test_a_ring_of_one_sends_nothing_and_gives_the_loss_in_tiles(n, m, tile, seed):
    rng = np.random.default_rng(seed)
    zimg, ztxt = unit_rows(rng, n, 3), unit_rows(rng, m, 3)
    found = losses(zimg, ztxt, Alone(), tile=tile)
    for (loss, grads), (true_loss, true_grads) in zip(found, whole(zimg, ztxt), strict=True):
        np.testing.assert_allclose(loss, true_loss, rtol=1e-13)
        for name, true in true_grads._asdict().items():
            np.testing.assert_allclose(getattr(grads, name), true, rtol=0, atol=1e-13)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_gradients_are_summed_over_the_ranks_leaf_by_leaf(world_size):
    jax = library("jax")
    rng = np.random.default_rng(world_size)
    tree = {
        "a": {"kernel": rng.standard_normal((world_size, 2, 3))},
        "b": rng.standard_normal((world_size,)),
    }

    def program(grads):
        return sr.ring.sum_gradients(grads, Axis("ranks", world_size))

    found = jax.vmap(program, axis_name="ranks")(sr.tree.tree_map(jax.numpy.asarray, tree))
    assert sr.tree.flatten(found).keys() == sr.tree.flatten(tree).keys()
    for rank in range(world_size):
        np.testing.assert_allclose(found["a"]["kernel"][rank], tree["a"]["kernel"].sum(axis=0))
        np.testing.assert_allclose(found["b"][rank], tree["b"].sum())


def test_summed_gradients_keep_their_dtypes_and_narrow_ones_are_summed_in_float32():
    seen = []

    class Seeing(Alone):
        def sum(self, array):
            seen.append(array.dtype)
            return array

    grads = {"half": np.ones((2, 2), np.float16), "wide": np.ones((), np.float32)}
    found = sr.ring.sum_gradients(grads, Seeing())
    assert seen == [np.dtype(np.float32)]
    assert {name: leaf.dtype.name for name, leaf in found.items()} == {
        "half": "float16",
        "wide": "float32",
    }


def test_a_tree_without_gradients_is_refused():
    with pytest.raises(ValueError, match="grads must have at least one leaf"):
        sr.ring.sum_gradients({}, Alone())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((2, 3, 2, 3), (0, 3, 2, 3)), r"at least one image and one text.*\(0, 3\).*on rank 1"),
        (((2, 3, 2, 3), (2, 3, 0, 0)), r"got matrices of \(2, 3\) and \(0, 0\) on rank 1"),
        (((2, 3, 2, 3), (2, 3, 2, 4)), r"\(2, 3\) and \(2, 4\) on rank 1"),
        (((2, 3, 2, 3), (2, 5, 2, 5), (1, 3, 1, 3)), "got 5 on rank 1 and 3 on rank 0"),
    ],
)
@pytest.mark.parametrize("number", range(3), ids=["sigmoid", "softmax", "allgather_softmax"])
def test_shards_that_do_not_fit_are_refused_on_every_rank_by_name(sizes, message, number):
    z = unit_rows(np.random.default_rng(0), 2, 3)
    loss = (
        lambda comm: sr.ring.sigmoid_loss(z, z, T_PRIME, B, comm),
        lambda comm: sr.ring.softmax_loss(z, z, T_PRIME, comm),
        lambda comm: sr.ring.allgather_softmax_loss(z, z, T_PRIME, comm),
    )[number]
    with pytest.raises(ValueError, match=message):
        loss(Alone(sizes))


def test_a_rank_without_images_is_told_so_itself(unchecked):
    z = unit_rows(np.random.default_rng(0), 2, 3)
    with pytest.raises(ValueError, match="zimg must be a matrix with at least one row"):
        sr.ring.sigmoid_loss(z[:0], z, T_PRIME, B, Alone())


@pytest.mark.parametrize("tile", [0, -1, 2.5])
def test_a_tile_must_be_a_positive_integer(unchecked, tile):
    z = unit_rows(np.random.default_rng(0), 2, 3)
    for loss in (
        lambda: sr.ring.sigmoid_loss(z, z, T_PRIME, B, Alone(), tile=tile),
        lambda: sr.ring.softmax_loss(z, z, T_PRIME, Alone(), tile=tile),
    ):
        with pytest.raises(ValueError, match=f"tile must be a positive integer, got {tile}"):
            loss()


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_global_indices_count_the_rows_of_all_ranks_once(counts):
    shards = Shards(tuple(counts))
    like = np.zeros(1)
    indices = [shards.indices(rank, like) for rank in range(len(counts))]
    assert np.concatenate(indices).tolist() == list(range(shards.total))


def test_the_communicators_of_these_tests_follow_the_protocol():
    for comm in (Axis("ranks", 2), Alone()):
        assert all(hasattr(comm, name) for name in ("world_size", "start_shift", "sum", "gather"))
    assert isinstance(Alone(), Communicator)
    assert isinstance(Arrived(()), Shift)
