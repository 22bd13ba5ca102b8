"""The losses on JAX: those of the core, and good citizens of jit, grad, vmap and shard_map."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import library
from siglip_ref import losses
from siglip_spec import Subject, autodiff, check_subject
from strategies import pairing
from subjects.tile_loops import OPERATIONS, TileLoop

jax = library("jax")
import jax.numpy as jnp  # noqa: E402

import siglip_jax  # noqa: E402
from siglip_jax.tile_loop import MULTIPLE, spans  # noqa: E402

ARGUMENTS = (0, 1, 2, 3)
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def batch(n=9, m=9, d=5, dtype=np.float64, seed=0):
    inputs = pairing(np.random.default_rng(seed), n=n, m=m, d=d)
    return tuple(np.asarray(x, dtype=dtype) for x in inputs)


def assert_close(got, want, tolerance=1e-12):
    for found, wanted in zip(got, want, strict=True):
        assert found.shape == wanted.shape
        assert np.max(np.abs(found - wanted)) <= tolerance * (np.max(np.abs(wanted)) + 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_losses_that_jax_differentiates_meet_the_vectors_of_the_kit(dtype):
    subject = Subject("siglip_jax", dtype=dtype, vjp=autodiff.jax)
    subject.provides("sigmoid_loss")(siglip_jax.sigmoid_loss)
    subject.provides("tiled_sigmoid_loss")(siglip_jax.sigmoid_loss)
    subject.provides("softmax_loss")(siglip_jax.softmax_loss)

    @subject.provides("pairwise_sigmoid_loss")
    def pairwise(zimg, ztxt, t_prime, b, labels, weights):
        # JAX reads no numbers out of bounds, and says nothing: who makes the pairs has to look.
        if labels.shape != (len(zimg), len(ztxt)):
            raise ValueError(f"labels must be (n, m), got {labels.shape}")
        pairs = losses.from_matrix(labels, weights)
        return siglip_jax.sigmoid_loss(zimg, ztxt, t_prime, b, pairs=pairs)

    assert_conforms(subject, {*OPERATIONS, "softmax_loss"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_that_gives_its_gradients_at_once_meets_the_vectors_of_the_kit(dtype):
    subject = TileLoop(
        "siglip_jax",
        siglip_jax.tiled_sigmoid_loss,
        dtype,
        lambda x, name: jnp.asarray(x, dtype=name),
        lambda x: np.asarray(x.astype(jnp.float64)),
    )
    assert_conforms(subject, {*OPERATIONS})


def assert_conforms(subject, operations):
    report = check_subject(subject, ["loss", "accuracy"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    passed = [record for record in report.records if record.status == "passed"]
    assert {record.operation for record in passed} == operations
    assert max(record.score or 0.0 for record in passed) < 0.5


@given(st.integers(1, 3000), st.integers(1, 1100))
def test_tiles_take_every_row_once_and_are_as_few_as_can_be_and_of_two_sizes(total, tile):
    found = spans(total, tile)
    rows = [
        range(span.start + k * span.size, span.start + (k + 1) * span.size)
        for span in found
        for k in range(span.tiles)
    ]
    assert [row for part in rows for row in part] == list(range(total))
    assert len(rows) == -(-total // tile)
    assert max(len(part) for part in rows) <= tile
    assert len(found) <= 2
    # Whole but for less than what they were rounded up by, once for each of them.
    assert len(rows[-1]) > len(rows[0]) - MULTIPLE * len(rows)


SIZES = st.sampled_from([1, 2, 5, 7, 9])


@settings(max_examples=6)
@given(SIZES, SIZES, st.sampled_from([1, 3, 4, 10]), st.integers(0, 9))
def test_tiles_of_any_size_give_the_loss_of_the_core(n, m, tile, seed):
    inputs = batch(n, m, seed=seed)
    rows, columns = np.arange(n) + 2, np.arange(m) + 1
    for options in ({}, {"rows": rows, "columns": columns, "total": 77}):
        want = losses.tiled_sigmoid_loss(*inputs, **options)
        got = siglip_jax.tiled_sigmoid_loss(*inputs, tile=tile, **options)
        assert_close((got[0], *got[1]), (want[0], *want[1]))


@pytest.mark.parametrize("t_prime", [0.0, math.log(100), math.log(2000)])
@pytest.mark.parametrize("b", [-2000.0, -10.0, 0.0, 300.0])
def test_extreme_logits_neither_overflow_nor_lose_digits(t_prime, b):
    zimg, ztxt, *_ = batch()
    scalars = np.asarray(t_prime), np.asarray(b)
    want = losses.tiled_sigmoid_loss(zimg, ztxt, *scalars)
    got = siglip_jax.tiled_sigmoid_loss(zimg, ztxt, *scalars)
    assert_close((got[0], *got[1]), (want[0], *want[1]))
    narrow = [np.asarray(x, dtype=np.float32) for x in (zimg, ztxt, *scalars)]
    got = siglip_jax.tiled_sigmoid_loss(*narrow)
    assert got[0].dtype == jnp.float32
    # A logit of 2000 in float32 is off by 1e-4.
    assert_close((got[0], *got[1]), (want[0], *want[1]), 2e-3)


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


def grouped(loss, zimg, ztxt, groups):
    """A loss as a step would have it: the groups come with the batch."""
    pairs = losses.same_group(groups, groups)
    scalars = (jnp.asarray(1.5), jnp.asarray(-2.0))[: 2 if loss == "sigmoid_loss" else 1]
    return getattr(siglip_jax, loss)(zimg, ztxt, *scalars, tile=4, pairs=pairs)


TRANSFORMED = {
    "jit": lambda gradient: lambda *x: jnp.stack([jax.jit(gradient)(*y) for y in unstacked(x)]),
    "vmap": jax.vmap,
    "jit of vmap": lambda gradient: jax.jit(jax.vmap(gradient)),
    "scan": lambda gradient: lambda *x: jax.lax.scan(lambda _, y: (None, gradient(*y)), None, x)[1],
}


def unstacked(arrays):
    return list(zip(*arrays, strict=True))


@pytest.mark.parametrize("how", TRANSFORMED)
@pytest.mark.parametrize("loss", ["sigmoid_loss", "softmax_loss"])
def test_pairs_may_hold_arrays_that_are_traced(loss, how):
    zimg, ztxt = (jnp.stack([batch(seed=seed)[k] for seed in range(3)]) for k in (0, 1))
    groups = np.random.default_rng(0).integers(0, 4, (3, 9))
    got = TRANSFORMED[how](jax.grad(partial(grouped, loss)))(zimg, ztxt, jnp.asarray(groups))
    for images, texts, ids, found in zip(zimg, ztxt, groups, got, strict=True):
        scalars = (np.asarray(1.5), np.asarray(-2.0))[: 2 if loss == "sigmoid_loss" else 1]
        _, want = getattr(losses, f"tiled_{loss}")(
            np.asarray(images), np.asarray(texts), *scalars, pairs=losses.same_group(ids, ids)
        )
        assert_close([found], [want.dzimg])


def test_a_gradient_of_a_compiled_loss_may_hold_such_pairs_too():
    zimg, ztxt, *_ = batch()
    groups = jnp.asarray([0, 1, 2, 0, 1, 2, 3, 3, 4])
    loss = partial(grouped, "sigmoid_loss")
    got = jax.grad(jax.jit(loss))(zimg, ztxt, groups)
    assert_close([got], [jax.grad(loss)(zimg, ztxt, groups)])


def test_labels_are_constants():
    zimg, ztxt, t_prime, b = batch()

    def loss(labels):
        pairs = losses.from_matrix(labels)
        return siglip_jax.sigmoid_loss(zimg, ztxt, t_prime, b, pairs=pairs)

    gradient = jax.grad(loss)(jnp.full((9, 9), 0.5))
    assert not np.any(gradient)


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


def test_float64_without_x64_is_refused_and_not_rounded():
    inputs = batch()
    with jax.enable_x64(False), pytest.raises(TypeError, match="zimg has the dtype float64"):
        siglip_jax.sigmoid_loss(*inputs)


def test_pairs_that_are_not_as_many_images_as_texts_are_refused(unchecked):
    with pytest.raises(ValueError, match="as many images as texts unless pairs is given"):
        siglip_jax.sigmoid_loss(*batch(3, 4))
    with pytest.raises(ValueError, match="tile must be a positive integer, got 0"):
        siglip_jax.sigmoid_loss(*batch(), tile=0)
    with pytest.raises(ValueError, match="t_prime must be a 0-d array"):
        siglip_jax.sigmoid_loss(*batch()[:2], np.zeros(1), np.zeros(()))


def temporaries(n, name="sigmoid_loss", d=256):
    """Bytes beside arguments and results of a loss of n pairs in float32, and of a matrix."""
    count = 4 if name == "sigmoid_loss" else 3
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, d), (n, d), (), ())]
    gradient = jax.value_and_grad(
        partial(getattr(siglip_jax, name), tile=64), argnums=ARGUMENTS[:count]
    )
    compiled = jax.jit(gradient).lower(*shapes[:count]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["sigmoid_loss", "softmax_loss"])
@pytest.mark.parametrize("n", [8192, 8191], ids=["whole tiles", "a smaller last tile"])
def test_memory_beside_arguments_and_gradients_hardly_grows_with_the_batch(n, name):
    few, many = temporaries(n // 8, name), temporaries(n, name)
    # Some sums of each line, but not a matrix of n rows, of 8 MB.
    assert many < few + 2_000_000
    assert many < 4_000_000


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


@pytest.mark.parametrize("twice", [jax.hessian, lambda loss: jax.grad(jax.grad(loss))])
def test_the_second_derivative_is_right_where_a_logit_is_0(twice):
    zimg, ztxt = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0]])

    def loss(b):
        return siglip_jax.sigmoid_loss(zimg, ztxt, jnp.asarray(0.0), b)

    assert float(twice(loss)(jnp.asarray(0.0))) == 0.25


def test_forward_mode_of_the_loss_itself_is_refused():
    zimg, ztxt, t_prime, b = batch()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(siglip_jax.sigmoid_loss, zimg, ztxt, t_prime), (b,), (b,))
