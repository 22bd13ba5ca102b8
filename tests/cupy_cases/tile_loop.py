"""The tile loop: the tiled loss of the core, in every dtype, for any pairs."""

import numpy as np
import pytest

from cupy_cases.numbers import DTYPES, assert_near, of_every_dtype, rounded
from siglip_ref.losses import from_matrix, reweighted, same_group, tiled_sigmoid_loss
from strategies import TARGETS, pairing, targets


def assert_same_loss(got, want, dtype, backend):
    loss, grads = got
    want_loss, want_grads = want
    sums = "float32" if dtype in ("float16", "bfloat16") else dtype
    assert backend.to_numpy(loss).dtype == DTYPES[sums]
    assert_near(backend.to_numpy(loss), want_loss, sums, "loss")
    for name, gradient in grads._asdict().items():
        scalar = gradient.ndim == 0
        assert gradient.dtype == DTYPES[sums if scalar else dtype], name
        wanted = getattr(want_grads, name)
        assert_near(backend.to_numpy(gradient), wanted, dtype, name)


def arguments(dtype, n, m, d, seed=3, b=-3.0):
    case = pairing(np.random.default_rng(seed), n, m, d, b=b)
    return rounded((*case[:2],), dtype) + rounded((*case[2:],), "float32")


def on_device(backend, arrays, dtype):
    scalars = dtype if dtype == "float64" else "float32"
    return tuple(backend.asarray(x.astype(DTYPES[dtype if x.ndim else scalars])) for x in arrays)


@of_every_dtype
@pytest.mark.parametrize(("n", "m", "tile"), [(1, 1, 1), (7, 7, 3), (6, 9, 4), (9, 5, 100)])
def test_the_tile_loop_is_the_tiled_loss_of_the_core_without_a_wait(
    dtype, n, m, tile, adapter, cupy_backend, no_waits
):
    args = arguments(dtype, n, m, 5)
    want = tiled_sigmoid_loss(*args, tile=tile)
    there = on_device(cupy_backend, args, dtype)
    with no_waits():
        got = adapter.tiled_sigmoid_loss(*there, tile=tile)
    assert_same_loss(got, want, dtype, cupy_backend)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_tile_loop_takes_any_labels_and_weights(kind, dtype, adapter, cupy_backend, no_waits):
    args = arguments(dtype, 6, 8, 5)
    labels, weights = targets(np.random.default_rng(4), 6, 8, kind)
    want = tiled_sigmoid_loss(*args, tile=4, pairs=from_matrix(labels, weights))
    there = on_device(cupy_backend, args, dtype)
    pairs = from_matrix(
        *(None if x is None else cupy_backend.asarray(x) for x in (labels, weights))
    )
    with no_waits():
        got = adapter.tiled_sigmoid_loss(*there, tile=4, pairs=pairs)
    assert_same_loss(got, want, dtype, cupy_backend)


def test_the_tile_loop_takes_groups_and_weights_of_classes(adapter, cupy_backend):
    args = arguments("float64", 6, 6, 5)
    groups = np.asarray([0, 1, 0, 2, 2, 3])
    want = tiled_sigmoid_loss(*args, pairs=reweighted(same_group(groups, groups), 3.0, 0.5))
    ids = cupy_backend.asarray(groups)
    got = adapter.tiled_sigmoid_loss(
        *on_device(cupy_backend, args, "float64"),
        tile=4,
        pairs=reweighted(same_group(ids, ids), 3.0, 0.5),
    )
    assert_same_loss(got, want, "float64", cupy_backend)


def test_a_block_of_a_larger_batch_has_the_indices_that_it_is_given(adapter, cupy_backend):
    args = arguments("float64", 4, 6, 5)
    rows, columns = np.asarray([7, 3, 9, 4]), np.asarray([4, 5, 6, 7, 8, 9])
    want = tiled_sigmoid_loss(*args, rows=rows, columns=columns, total=12, tile=3)
    got = adapter.tiled_sigmoid_loss(
        *on_device(cupy_backend, args, "float64"),
        rows=cupy_backend.asarray(rows.astype(np.int32)),
        columns=cupy_backend.asarray(columns),
        total=12,
        tile=3,
    )
    assert_same_loss(got, want, "float64", cupy_backend)


def test_embeddings_that_lie_apart_or_differ_in_dtype_are_taken_too(adapter, cupy_backend):
    zimg, ztxt, t_prime, b = arguments("float32", 5, 5, 4)
    want = tiled_sigmoid_loss(zimg, ztxt, t_prime, b)
    backwards = cupy_backend.asarray(zimg.T.copy()).T
    got = adapter.tiled_sigmoid_loss(
        backwards,
        cupy_backend.asarray(ztxt.astype(np.float32)),
        *(cupy_backend.asarray(x) for x in (t_prime, b)),
        tile=3,
    )
    assert got[1].dzimg.dtype == np.float64
    assert got[1].dztxt.dtype == np.float32
    for got_z, want_z in zip(got[1][:2], want[1][:2], strict=True):
        np.testing.assert_allclose(cupy_backend.to_numpy(got_z), want_z, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_unlikely_pairs_survives_in_float16(adapter, cupy_backend):
    # At a logit of -20 the gradient of a logit is 2e-9, of which float16 keeps nothing.
    zimg, ztxt, _, _ = arguments("float16", 6, 6, 5)
    args = (zimg, ztxt, np.asarray(0.0), np.asarray(-20.0))
    nothing = from_matrix(-np.ones((6, 6)))
    _, want = tiled_sigmoid_loss(*args, pairs=nothing)
    there = on_device(cupy_backend, args, "float16")
    pairs = from_matrix(cupy_backend.asarray(-np.ones((6, 6))))
    _, got = adapter.tiled_sigmoid_loss(*there, pairs=pairs)
    np.testing.assert_allclose(cupy_backend.to_numpy(got.db), want.db, rtol=1e-4)
    assert float(want.db) > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: ((a[0][0], *a[1:]), {}),
        lambda a: ((a[0], a[1][:, :2], *a[2:]), {}),
        lambda a: ((*a[:2], a[0], a[3]), {}),
        lambda a: ((*a[:3], -10.0), {}),
        lambda a: (a, {"tile": 0}),
        lambda a: (a, {"tile": 2.0}),
        lambda a: (a, {"rows": a[0][:2, 0]}),
    ],
)
def test_bad_arguments_are_refused_in_the_words_of_the_core(wrong, adapter, cupy_backend):
    host = arguments("float64", 4, 4, 3)
    args, options = wrong(host)
    with pytest.raises(ValueError, match="must") as expected:
        tiled_sigmoid_loss(*args, **options)
    args, options = wrong(on_device(cupy_backend, host, "float64"))
    with pytest.raises(ValueError, match="must") as found:
        adapter.tiled_sigmoid_loss(*args, **options)
    assert str(found.value) == str(expected.value)
