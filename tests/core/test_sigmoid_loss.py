"""The sigmoid loss, whole, in blocks and in tiles."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from siglip_ref.losses import (
    diagonal,
    from_matrix,
    reweighted,
    same_group,
    sigmoid_loss_bwd,
    sigmoid_loss_fwd,
    tiled_sigmoid_loss,
)
from siglip_ref.losses.pairs import PairTargets
from siglip_ref.losses.sigmoid import pair_nll
from strategies import TARGETS, distinct, pairing, seeds, targets, unit_rows

PAIRS = distinct("n", "m", "d", most=12)


def whole(inputs, **options):
    """The loss, its gradients by name, and those of the logits."""
    loss, res = sigmoid_loss_fwd(*inputs, **options)
    return loss, sigmoid_loss_bwd(res, np.ones_like(loss))._asdict(), res.dlogits


def assert_same(got, want, inputs, dlogits, tolerance):
    """Equal losses and gradients to `tolerance` of the magnitudes that are summed up.

    Sums over pairs of either sign may nearly cancel, so the result itself is no scale.
    """
    size, t = np.abs(dlogits), math.exp(inputs.t_prime)
    scales = {
        "dzimg": t * size @ np.abs(inputs.ztxt),
        "dztxt": t * size.T @ np.abs(inputs.zimg),
        "dt_prime": t * np.sum(size * (np.abs(inputs.zimg) @ np.abs(inputs.ztxt).T)),
        "db": np.sum(size),
    }
    loss, gradients = got
    want_loss, want_gradients = want
    assert abs(loss - want_loss) <= tolerance * want_loss
    for name, scale in scales.items():
        error = np.abs(gradients[name] - want_gradients[name])
        assert np.all(error <= tolerance * scale), f"{name}: off by {np.max(error / scale):.3g}"


@given(PAIRS, seeds)
def test_it_is_equation_1_of_the_paper_with_plus_b(sizes, seed):
    inputs = pairing(np.random.default_rng(seed), **sizes)
    loss, _ = sigmoid_loss_fwd(*inputs)
    want = 0.0
    for i, x in enumerate(inputs.zimg):
        for j, y in enumerate(inputs.ztxt):
            z = 1 if i == j else -1
            logit = math.exp(inputs.t_prime) * float(x @ y) + float(inputs.b)
            want += math.log1p(math.exp(-z * logit)) / sizes["n"]
    assert math.isclose(loss, want, rel_tol=1e-13)


def test_one_pair_at_the_initial_parameters_costs_its_softplus():
    row = np.asarray([[0.6, 0.8]])
    loss, _ = sigmoid_loss_fwd(row, row, np.asarray(math.log(10)), np.asarray(-10.0))
    assert math.isclose(loss, math.log(2), rel_tol=1e-14)


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=PAIRS, seed=seeds)
def test_any_targets_give_the_binary_cross_entropy(kind, sizes, seed):
    n, m, _ = sizes.values()
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    labels, weights = targets(rng, n, m, kind)
    loss, gradients, dlogits = whole(inputs, pairs=from_matrix(labels, weights))

    y, w = (1 + labels) / 2, 1.0 if weights is None else weights
    logits = np.exp(inputs.t_prime) * inputs.zimg @ inputs.ztxt.T + inputs.b
    p, q = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))
    want = -np.sum(w * (y * np.log(p) + (1 - y) * np.log(q))) / n
    want_dlogits = w * (p - y) / n
    # p and q are rounded to 1e-16 each, and their logarithms go up to 30.
    assert abs(loss - want) <= 1e-13 * (1 + want)
    np.testing.assert_allclose(dlogits, want_dlogits, rtol=0, atol=2e-15 * (1 + np.max(w)))
    np.testing.assert_allclose(gradients["db"], np.sum(want_dlogits), rtol=0, atol=1e-13 * m)


@given(PAIRS, seeds, st.integers(1, 13))
def test_any_tile_gives_the_whole(sizes, seed, tile):
    inputs = pairing(np.random.default_rng(seed), **sizes)
    *want, dlogits = whole(inputs)
    loss, gradients = tiled_sigmoid_loss(*inputs, tile=tile)
    assert_same((loss, gradients._asdict()), want, inputs, dlogits, 1e-14)


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=PAIRS, seed=seeds, tile=st.integers(1, 13))
def test_any_tile_of_any_targets_gives_the_whole(kind, sizes, seed, tile):
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    pairs = from_matrix(*targets(rng, sizes["n"], sizes["m"], kind))
    *want, dlogits = whole(inputs, pairs=pairs)
    loss, gradients = tiled_sigmoid_loss(*inputs, tile=tile, pairs=pairs)
    assert_same((loss, gradients._asdict()), want, inputs, dlogits, 1e-14)


@given(PAIRS, seeds, st.data())
def test_blocks_of_rows_and_columns_sum_to_the_whole(sizes, seed, data):
    n, m, _ = sizes.values()
    inputs = pairing(np.random.default_rng(seed), **sizes)
    *want, dlogits = whole(inputs)
    row_cut, column_cut = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    loss, gradients = 0.0, {name: np.zeros_like(x) for name, x in want[1].items()}
    for rows in (np.arange(row_cut), np.arange(row_cut, n)):
        for columns in (np.arange(column_cut), np.arange(column_cut, m)):
            if not (rows.size and columns.size):
                continue
            block = inputs._replace(zimg=inputs.zimg[rows], ztxt=inputs.ztxt[columns])
            part, dpart, _ = whole(block, rows=rows, columns=columns, total=n)
            loss += part
            gradients["dzimg"][rows] += dpart["dzimg"]
            gradients["dztxt"][columns] += dpart["dztxt"]
            gradients["dt_prime"] += dpart["dt_prime"]
            gradients["db"] += dpart["db"]
    assert_same((loss, gradients), want, inputs, dlogits, 1e-14)


@given(PAIRS, seeds)
def test_the_order_of_the_pairs_does_not_matter(sizes, seed):
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    *want, dlogits = whole(inputs)
    rows, columns = rng.permutation(sizes["n"]), rng.permutation(sizes["m"])
    shuffled = inputs._replace(zimg=inputs.zimg[rows], ztxt=inputs.ztxt[columns])
    loss, gradients, _ = whole(shuffled, rows=rows, columns=columns)
    back = gradients | {
        "dzimg": gradients["dzimg"][np.argsort(rows)],
        "dztxt": gradients["dztxt"][np.argsort(columns)],
    }
    assert_same((loss, back), want, inputs, dlogits, 1e-14)


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=PAIRS, seed=seeds)
def test_the_slope_of_the_temperature_is_that_of_the_images_and_of_the_texts(kind, sizes, seed):
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    pairs = from_matrix(*targets(rng, sizes["n"], sizes["m"], kind))
    _, gradients, dlogits = whole(inputs, pairs=pairs)
    cosines = np.abs(inputs.zimg) @ np.abs(inputs.ztxt).T
    scale = math.exp(inputs.t_prime) * np.sum(np.abs(dlogits) * cosines)
    for z, dz in ((inputs.zimg, gradients["dzimg"]), (inputs.ztxt, gradients["dztxt"])):
        assert abs(np.sum(z * dz) - gradients["dt_prime"]) <= 1e-14 * scale


@given(PAIRS, seeds)
def test_groups_are_their_matrix_of_signs(sizes, seed):
    n, m, _ = sizes.values()
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    image_groups, text_groups = rng.integers(0, 4, n), rng.integers(0, 4, m)
    signs = np.where(image_groups[:, None] == text_groups[None, :], 1.0, -1.0)
    loss, gradients, _ = whole(inputs, pairs=same_group(image_groups, text_groups))
    want_loss, want, _ = whole(inputs, pairs=from_matrix(signs))
    assert loss == want_loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, want[name], err_msg=name)


@given(PAIRS, seeds, st.floats(0.1, 10), st.floats(0.1, 10))
def test_reweighting_weighs_matches_and_mismatches_of_soft_labels(sizes, seed, positive, negative):
    n, m, _ = sizes.values()
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    labels, weights = targets(rng, n, m, "weighted")
    loss, _ = sigmoid_loss_fwd(
        *inputs, pairs=reweighted(from_matrix(labels, weights), positive, negative)
    )
    logits = np.exp(inputs.t_prime) * inputs.zimg @ inputs.ztxt.T + inputs.b
    match = positive * (1 + labels) / 2 * np.log1p(np.exp(-logits))
    mismatch = negative * (1 - labels) / 2 * np.log1p(np.exp(logits))
    want = np.sum(weights * (match + mismatch)) / n
    assert math.isclose(loss, want, rel_tol=1e-13, abs_tol=1e-300)


@given(PAIRS, seeds)
def test_masking_images_and_texts_is_removing_them(sizes, seed):
    n, m, _ = sizes.values()
    rng = np.random.default_rng(seed)
    inputs = pairing(rng, **sizes)
    rows, columns = rng.integers(0, 2, n).astype(bool), rng.integers(0, 2, m).astype(bool)
    assume(rows.any() and columns.any())
    labels = rng.uniform(-1, 1, (n, m))
    masked = from_matrix(labels, np.outer(rows, columns).astype(float))
    loss, gradients, _ = whole(inputs, pairs=masked)
    kept = inputs._replace(zimg=inputs.zimg[rows], ztxt=inputs.ztxt[columns])
    *want, dlogits = whole(kept, pairs=from_matrix(labels[np.ix_(rows, columns)]), total=n)
    assert not np.any(gradients["dzimg"][~rows])
    assert not np.any(gradients["dztxt"][~columns])
    reduced = gradients | {
        "dzimg": gradients["dzimg"][rows],
        "dztxt": gradients["dztxt"][columns],
    }
    assert_same((loss, reduced), want, kept, dlogits, 1e-14)


@given(PAIRS, seeds)
def test_the_gradient_for_a_cotangent_is_that_multiple(sizes, seed):
    inputs = pairing(np.random.default_rng(seed), **sizes)
    loss, res = sigmoid_loss_fwd(*inputs)
    one = sigmoid_loss_bwd(res, np.ones_like(loss))
    # By a power of two: exact.
    for got, want in zip(sigmoid_loss_bwd(res, -4 * np.ones_like(loss)), one, strict=True):
        np.testing.assert_array_equal(got, -4 * want)


@pytest.mark.parametrize("label", [-1.0, 1.0])
@given(logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=64))
def test_every_slope_of_a_logit_keeps_its_digits_in_float32(label, logits):
    logits = np.asarray([[*logits, -10.0]], np.float32)
    nll, dnll = pair_nll(logits, PairTargets(np.full(logits.shape, label)))
    margin = -label * logits.astype(np.float64)
    want_nll, want = np.log1p(np.exp(margin)), -label / (1 + np.exp(-margin))
    # Three rounded operations of at most one unit each, and exp: 4e-7 is 6.7 units of 2^-24.
    np.testing.assert_allclose(dnll, want, rtol=4e-7, atol=0)
    np.testing.assert_allclose(nll, want_nll, rtol=4e-7, atol=0)


@given(seeds)
def test_at_the_initial_bias_float32_loses_only_the_rounding_of_the_logits(seed):
    # Relative to itself each slope is off by its own 4e-7 and the absolute error of its logit: of
    # a product of 64 terms, times t, plus b, each sum rounded once, and of exp(t').
    rng = np.random.default_rng(seed)
    zimg, ztxt = (unit_rows(rng, n, 64).astype(np.float32) for n in (9, 7))
    t_prime, b = np.float32(math.log(10)), np.float32(-10)
    _, res = sigmoid_loss_fwd(zimg, ztxt, np.asarray(t_prime), np.asarray(b))
    inputs = [np.asarray(x, np.float64) for x in (zimg, ztxt, t_prime, b)]
    _, want = sigmoid_loss_fwd(*inputs)
    magnitudes = 10 * np.abs(inputs[0]) @ np.abs(inputs[1]).T
    logit_error = 2.0**-24 * ((64 + 4) * magnitudes + 20)
    error = np.abs(res.dlogits - want.dlogits) / np.abs(want.dlogits)
    assert np.all(error <= 4e-7 + 6e-8 + logit_error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_are_finite_and_right(backend, dtype, sign):
    # Exact numbers: t = 1, and embeddings with the products ±1e4 off or on the diagonal.
    zimg = np.asarray([[100.0, 0], [0, 100]])
    arrays = (zimg, sign * zimg, np.asarray(0.0), np.asarray(0.0))
    inputs = [backend.asarray(x.astype(dtype)) for x in arrays]
    loss, res = backend.call(sigmoid_loss_fwd, *inputs)
    one = backend.asarray(np.asarray(1, dtype))
    dzimg, dztxt, dt_prime, db = backend.call(sigmoid_loss_bwd, res, one)
    # Right: the two pairs off the diagonal cost log 2 each. Wrong: the matches cost 1e4 as well.
    wrong = sign == -1
    want = {"loss": math.log(2) + 1e4 * wrong, "db": 0.5 - wrong, "dt_prime": 1e4 * wrong}
    # dlogits = (0.5 off the diagonal, -1 on it if wrong, else 0) / 2
    dlogits = np.asarray([[-1.0 * wrong, 0.5], [0.5, -1.0 * wrong]]) / 2
    for got, wanted in (
        (loss, want["loss"]),
        (db, want["db"]),
        (dt_prime, want["dt_prime"]),
        (dzimg, dlogits @ (sign * zimg)),
        (dztxt, dlogits.T @ zimg),
    ):
        np.testing.assert_allclose(backend.to_numpy(got), wanted, rtol=3e-7, atol=1e-30)


@given(seeds)
def test_zero_embeddings_leave_only_the_bias(seed):
    b = np.random.default_rng(seed).uniform(-10, 1)
    zeros = np.zeros((3, 4))
    loss, gradients, _ = whole(
        pairing(np.random.default_rng(0), 3, 3, 4, b=b)._replace(zimg=zeros, ztxt=zeros)
    )
    assert math.isclose(loss, np.log1p(np.exp(-b)) + 2 * np.log1p(np.exp(b)), rel_tol=1e-14)
    assert gradients["dt_prime"] == 0
    assert not np.any(gradients["dzimg"])
    assert not np.any(gradients["dztxt"])


GOOD = pairing(np.random.default_rng(0), 3, 4, 5)


@pytest.mark.parametrize("loss", [sigmoid_loss_fwd, tiled_sigmoid_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"zimg": np.ones(3)},
            r"zimg must be a matrix with at least one row, got the shape \(3,\)",
        ),
        ({"ztxt": np.ones((0, 5))}, r"ztxt must be a matrix with at least one row.*\(0, 5\)"),
        ({"ztxt": np.ones((4, 6))}, r"rows of one size, got the shapes \(3, 5\) and \(4, 6\)"),
        ({"t_prime": np.ones(1)}, r"t_prime must be a 0-d array, got the shape \(1,\)"),
        ({"t_prime": 2.3}, "t_prime must be a 0-d array, got float"),
        ({"b": np.ones((1, 1))}, r"b must be a 0-d array, got the shape \(1, 1\)"),
        ({"b": -10}, "b must be a 0-d array, got int"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit_are_refused_by_name(loss, change, message):
    with pytest.raises(ValueError, match=message):
        loss(*GOOD._replace(**change))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", [sigmoid_loss_fwd, tiled_sigmoid_loss])
@pytest.mark.parametrize("name", ["rows", "columns"])
def test_indices_of_another_number_are_refused(loss, name):
    with pytest.raises(ValueError, match=r"one index for each embedding, .*got the shape \(2,\)"):
        loss(*GOOD, **{name: np.arange(2)})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("tile", [0, -1, 2.0])
def test_a_tile_that_is_no_positive_integer_is_refused(tile):
    with pytest.raises(ValueError, match=f"tile must be a positive integer, got {tile!r}"):
        tiled_sigmoid_loss(*GOOD, tile=tile)


def test_the_default_pairs_of_a_block_need_no_square():
    loss, _ = sigmoid_loss_fwd(*GOOD)
    assert loss == sigmoid_loss_fwd(*GOOD, pairs=diagonal)[0]
