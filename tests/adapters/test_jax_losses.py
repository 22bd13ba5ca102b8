"""The losses on JAX: those of the core, and good citizens of jit, grad, vmap and shard_map."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import library
from siglip_ref import losses
from siglip_spec import check_subject
from strategies import pairing
from subjects.tile_loops import OPERATIONS, TileLoop

jax = library("jax")
import jax.numpy as jnp  # noqa: E402

import siglip_jax  # noqa: E402

ARGUMENTS = (0, 1, 2, 3)
PROGRAM = Path(__file__).parents[1] / "jax_ring_program.py"


def batch(n=9, m=9, d=5, dtype=np.float64, seed=0):
    inputs = pairing(np.random.default_rng(seed), n=n, m=m, d=d)
    return tuple(np.asarray(x, dtype=dtype) for x in inputs)


def assert_close(got, want, tolerance=1e-12):
    for found, wanted in zip(got, want, strict=True):
        assert found.shape == wanted.shape
        assert np.max(np.abs(found - wanted)) <= tolerance * (np.max(np.abs(wanted)) + 1e-3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_vectors_of_the_kit_are_met(dtype):
    subject = TileLoop(
        "siglip_jax",
        siglip_jax.tiled_sigmoid_loss,
        dtype,
        lambda x, name: jnp.asarray(x, dtype=name),
        lambda x: np.asarray(x.astype(jnp.float64)),
    )
    report = check_subject(subject, ["loss", "accuracy"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    passed = {record.operation for record in report.records if record.status == "passed"}
    assert passed == set(OPERATIONS)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 10), st.integers(0, 9))
def test_tiles_of_any_size_give_the_loss_of_the_core(n, m, tile, seed):
    inputs = batch(n, m, seed=seed)
    rows, columns = np.arange(n) + 2, np.arange(m) + 1
    for options in ({}, {"rows": rows, "columns": columns, "total": 77}):
        want = losses.tiled_sigmoid_loss(*inputs, **options)
        got = siglip_jax.tiled_sigmoid_loss(*inputs, tile=tile, **options)
        assert_close((got[0], *got[1]), (want[0], *want[1]))


@pytest.mark.parametrize("name", ["sigmoid_loss", "softmax_loss"])
def test_the_gradient_is_that_of_the_core_and_scales_with_the_cotangent(name):
    inputs = batch()[: 4 if name == "sigmoid_loss" else 3]
    loss = partial(getattr(siglip_jax, name), tile=4)
    value, grads = jax.value_and_grad(lambda *x: 3 * loss(*x), argnums=ARGUMENTS[: len(inputs)])(
        *inputs
    )
    want_value, want = getattr(losses, f"tiled_{name}")(*inputs)
    assert float(value) == pytest.approx(3 * float(want_value), rel=1e-13)
    assert_close([grad / 3 for grad in grads], want)


@pytest.mark.parametrize("name", ["sigmoid_loss", "softmax_loss"])
def test_jit_and_vmap_of_the_gradient_change_nothing(name):
    count = 4 if name == "sigmoid_loss" else 3
    batches = [batch(seed=seed)[:count] for seed in range(3)]
    gradient = jax.grad(partial(getattr(siglip_jax, name), tile=4), argnums=ARGUMENTS[:count])
    stacked = [jnp.stack(parts) for parts in zip(*batches, strict=True)]
    mapped = jax.jit(jax.vmap(gradient))(*stacked)
    for number, inputs in enumerate(batches):
        assert_close([part[number] for part in mapped], gradient(*inputs))


def test_the_loss_composes_with_what_comes_before_it():
    zimg, ztxt, t_prime, b = batch()

    def with_normalisation(loss, x, y):
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return loss(x, y, t_prime, b)

    def plain(x, y, t, bias):
        logits = jnp.exp(t) * x @ y.T + bias
        labels = 2 * jnp.eye(len(x)) - 1
        return jnp.sum(jax.nn.softplus(-labels * logits)) / len(x)

    got, want = (
        jax.grad(partial(with_normalisation, loss), argnums=(0, 1))(zimg, ztxt)
        for loss in (siglip_jax.sigmoid_loss, plain)
    )
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_have_the_dtypes_of_their_arguments(dtype):
    zimg, ztxt, t_prime, b = batch(dtype=np.float32)
    narrow = jnp.asarray(zimg, dtype=dtype), jnp.asarray(ztxt, dtype=dtype)
    value, grads = jax.value_and_grad(siglip_jax.sigmoid_loss, argnums=ARGUMENTS)(
        *narrow, t_prime, b
    )
    assert value.dtype == jnp.float32
    assert [str(grad.dtype) for grad in grads] == [dtype, dtype, "float32", "float32"]


def test_a_large_cotangent_reaches_float16_gradients_before_they_are_rounded():
    zimg, ztxt, t_prime, b = (jnp.asarray(x, dtype=jnp.float16) for x in batch())
    scale = 2.0**-30  # as of a batch of a billion
    gradient = jax.grad(lambda x: 2.0**30 * (scale * siglip_jax.sigmoid_loss(x, ztxt, t_prime, b)))(
        zimg
    )
    assert float(jnp.max(jnp.abs(gradient))) > 1e-3


def test_float64_without_x64_is_refused_and_not_rounded(monkeypatch):
    inputs = batch()
    with jax.enable_x64(False), pytest.raises(TypeError, match="zimg has the dtype float64"):
        siglip_jax.sigmoid_loss(*inputs)


def test_pairs_that_are_not_as_many_images_as_texts_are_refused(unchecked):
    with pytest.raises(ValueError, match="one row for each pair unless pairs is given"):
        siglip_jax.sigmoid_loss(*batch(3, 4))
    with pytest.raises(ValueError, match="tile must be a positive integer, got 0"):
        siglip_jax.sigmoid_loss(*batch(), tile=0)
    with pytest.raises(ValueError, match="t_prime must be a 0-d array"):
        siglip_jax.sigmoid_loss(*batch()[:2], np.zeros(1), np.zeros(()))


def test_memory_does_not_grow_with_the_square_of_the_batch():
    def temporary(n):
        shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in batch(n, n)]
        gradient = jax.value_and_grad(partial(siglip_jax.sigmoid_loss, tile=64), argnums=ARGUMENTS)
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 4096 * 4096  # a quarter of the logits alone
    assert temporary(4096) < 10 * temporary(512)


def test_rings_of_1_to_8_devices_give_the_loss_of_one():
    run = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split(": ")[1].split() for line in run.stdout.splitlines()]
    assert [len(errors) for errors in lines] == 8 * [1, 1, 4, 1]
    assert max(float(error) for errors in lines for error in errors) <= 1e-12, run.stdout


@pytest.mark.parametrize("outer", ["jacrev", "jacfwd"])
def test_the_gradient_can_be_differentiated_again(outer):
    zimg, ztxt, t_prime, b = batch(4, 4, 3)

    def plain(x):
        labels = 2 * jnp.eye(4) - 1
        return jnp.sum(jax.nn.softplus(-labels * (jnp.exp(t_prime) * x @ ztxt.T + b))) / 4

    got, want = (
        getattr(jax, outer)(jax.grad(loss))(zimg)
        for loss in (lambda x: siglip_jax.sigmoid_loss(x, ztxt, t_prime, b, tile=2), plain)
    )
    assert_close([got], [want], 1e-11)


def test_the_backend_moves_arrays_and_compiles():
    backend = siglip_jax.JaxBackend()
    array = backend.asarray(np.asarray([1.0, 2.0], dtype=np.float32))
    assert isinstance(array, jax.Array)
    doubled = backend.compile(lambda x: 2 * x)(array)
    backend.synchronize()
    np.testing.assert_array_equal(backend.to_numpy(doubled), [2.0, 4.0])
    narrow = backend.to_numpy(array.astype(jnp.bfloat16))
    assert narrow.dtype == np.float32
    assert backend.peak_memory() > 1e6
    with jax.enable_x64(False), pytest.raises(TypeError, match="x has the dtype float64"):
        backend.asarray(np.zeros(2))
