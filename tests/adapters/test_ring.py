"""The losses on a ring: whatever the sharding, they are those of a single device."""

import json
import subprocess
import sys

import numpy as np
import pytest
from array_api_compat import array_namespace, device
from hypothesis import given, settings
from hypothesis import strategies as st

import ring_memory_program
import siglip_mpi
import siglip_ref as sr
from backends import BACKENDS, library
from siglip_mpi import communicator, memory, simulate
from siglip_spec import check_subject
from siglip_spec.operations import Answer
from siglip_spec.subject import RefusedError

T_PRIME, B = np.asarray(1.5), np.asarray(-2.0)
LIBRARIES = [backend for backend in BACKENDS if not backend.jit]


def unit_rows(rng, n, d):
    z = rng.standard_normal((n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def on_a_ring(counts, text_counts, zimg, ztxt, asarray=np.asarray, **options):
    """All losses on a simulated ring: for each what the ranks return."""
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
            sr.ring.allgather_softmax_loss(
                *shards, comm, **{name: x for name, x in options.items() if name != "tile"}
            ),
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


def assert_all_same(found, zimg, ztxt, to_numpy=np.asarray, **options):
    """The three losses on a ring are the two on a single device."""
    sigmoid, softmax, gathered = found
    whole = sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B, **options)
    assert_same(sigmoid, whole, to_numpy)
    whole = sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME, **options)
    assert_same(softmax, whole, to_numpy)
    assert_same(gathered, whole, to_numpy)


@given(
    shards=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8),
    tile=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_any_sharding_gives_the_loss_and_gradients_of_a_single_device(shards, tile, seed):
    counts, text_counts = zip(*shards, strict=True)
    rng = np.random.default_rng(seed)
    zimg, ztxt = unit_rows(rng, sum(counts), 3), unit_rows(rng, sum(text_counts), 3)
    assert_all_same(on_a_ring(counts, text_counts, zimg, ztxt, tile=tile), zimg, ztxt)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_world_size_even_or_odd_gives_the_same(world_size):
    rng = np.random.default_rng(world_size)
    counts = [1 + (3 * rank) % 4 for rank in range(world_size)]
    zimg, ztxt = unit_rows(rng, sum(counts), 5), unit_rows(rng, sum(counts), 5)
    assert_all_same(on_a_ring(counts, counts, zimg, ztxt), zimg, ztxt)


def test_pairs_get_global_indices():
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 7, 4), unit_rows(rng, 7, 4)
    groups = np.asarray([0, 1, 0, 2, 1, 0, 3])
    pairs = sr.losses.same_group(groups, groups)
    found = on_a_ring((3, 2, 2), (2, 4, 1), zimg, ztxt, pairs=pairs)
    assert_all_same(found, zimg, ztxt, pairs=pairs)


@pytest.mark.parametrize("backend", LIBRARIES, ids=lambda backend: backend.name)
def test_arrays_of_every_library_keep_their_library_and_device(backend):
    backend.require()
    rng = np.random.default_rng(0)
    zimg, ztxt = unit_rows(rng, 3, 4), unit_rows(rng, 3, 4)
    # A message and an array API version that is set for a thread do not go together.
    found = on_a_ring((2, 1), (1, 2), zimg, ztxt, asarray=backend.asarray)
    home = backend.asarray(zimg)
    for ranks in found:
        for loss, grads in ranks:
            for array in (loss, *grads):
                assert array_namespace(array) is array_namespace(home)
                assert str(device(array)) == str(device(home))
                assert array.dtype == home.dtype
    assert_all_same(found, zimg, ztxt, to_numpy=backend.to_numpy)


def test_float16_shards_have_their_gradients_summed_in_float32():
    rng = np.random.default_rng(0)
    zimg, ztxt = (unit_rows(rng, 8, 4).astype(np.float16) for _ in "xy")
    sigmoid, *_ = on_a_ring((2, 2, 2, 2), (2, 2, 2, 2), zimg, ztxt)
    wide = [z.astype(np.float64) for z in (zimg, ztxt)]
    _, grads = sr.losses.tiled_sigmoid_loss(*wide, T_PRIME, B)
    joined = np.concatenate([g.dztxt for _, g in sigmoid])
    assert joined.dtype == np.float16
    np.testing.assert_allclose(joined, grads.dztxt, rtol=2.0**-10, atol=2.0**-20)


@pytest.mark.parametrize("name", ["torch", "jax", "ml_dtypes"])
def test_bfloat16_shards_travel_as_they_are_with_gradients_in_float32(name):
    xp = library({"jax": "jax.numpy"}.get(name, name))
    rng = np.random.default_rng(0)
    zimg, ztxt = (unit_rows(rng, 8, 4) for _ in "xy")

    def narrow(z):
        if name == "ml_dtypes":
            return np.asarray(z, dtype=xp.bfloat16)
        return xp.asarray(z).astype(xp.bfloat16) if name == "jax" else xp.asarray(z).bfloat16()

    def wide(z):
        return z.float().numpy() if name == "torch" else np.asarray(z, dtype=np.float64)

    shards = [np.split(z, 2) for z in (zimg, ztxt)]

    def rank_program(mpi):
        comm = communicator(mpi, timeout=20)
        images, texts = (narrow(z[comm.rank]) for z in shards)
        scalars = [narrow(np.asarray(x)) for x in (T_PRIME, B)]
        return sr.ring.sigmoid_loss(images, texts, *scalars, comm)

    sigmoid = simulate(2, rank_program)
    rounded = [wide(narrow(z)).astype(np.float64) for z in (zimg, ztxt)]
    whole = sr.losses.tiled_sigmoid_loss(*rounded, T_PRIME, B)
    joined = np.concatenate([wide(grads.dztxt) for _, grads in sigmoid])
    assert all(str(grads.dztxt.dtype).endswith("bfloat16") for _, grads in sigmoid)
    np.testing.assert_allclose(joined, whole[1].dztxt, rtol=2.0**-8, atol=2.0**-20)


def test_a_rank_holds_what_the_formula_says_and_a_few_tiles_on_any_number_of_ranks():
    # With fewer than four ranks there is not always a shard on its way in both directions.
    cases = [
        (name, dtype, world_size, 96, 128, 512)
        for name in memory.FORMULAS
        for dtype in ("float64", "float32", "float16")
        for world_size in (4, 8)
    ]
    command = [sys.executable, ring_memory_program.__file__, json.dumps(cases)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    for (name, dtype, *shape), held in zip(cases, json.loads(run.stdout), strict=True):
        said = memory.FORMULAS[name](*shape, np.dtype(dtype).itemsize)
        assert said <= held < 1.08 * said, (name, dtype, shape)


@pytest.mark.parametrize("name", ["sigmoid_ring", "softmax_ring"])
def test_the_formula_of_a_ring_does_not_grow_with_the_number_of_ranks(name):
    assert memory.FORMULAS[name](4, 96, 128, 512, 4) == memory.FORMULAS[name](8, 96, 128, 512, 4)


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


def test_the_package_lists_its_names():
    assert siglip_mpi.__all__ == sorted(siglip_mpi.__all__)
    assert all(hasattr(siglip_mpi, name) for name in siglip_mpi.__all__)
