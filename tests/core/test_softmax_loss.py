"""The symmetric softmax loss, whole and in tiles."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends import library
from siglip_ref.losses import (
    diagonal,
    from_matrix,
    same_group,
    softmax_loss_bwd,
    softmax_loss_fwd,
    tiled_softmax_loss,
)
from strategies import TARGETS, distinct, pairing, seeds, targets

PAIRS = distinct("n", "m", "d", most=12)
NAMES = ("zimg", "ztxt", "t_prime")


def draw(seed, sizes):
    """The generator, and the arguments of the loss."""
    rng = np.random.default_rng(seed)
    return rng, pairing(rng, **sizes)[:3]


def whole(inputs, **options):
    loss, res = softmax_loss_fwd(*inputs, **options)
    return loss, softmax_loss_bwd(res, np.ones_like(loss)), res.dlogits


def assert_same(got, want, inputs, tolerance):
    """Equal losses and gradients to `tolerance` of the magnitudes that are summed up.

    A slope is the difference of a probability and a target, both up to 1 / n and 1 / m.
    """
    zimg, ztxt, t_prime = inputs
    t, most = math.exp(t_prime), 1 / zimg.shape[0] + 1 / ztxt.shape[0]
    scales = (
        t * most * np.max(np.sum(np.abs(ztxt), axis=0)),
        t * most * np.max(np.sum(np.abs(zimg), axis=0)),
        t,
    )
    # The loss is a difference of logits up to t.
    assert abs(got[0] - want[0]) <= tolerance * (t + abs(want[0]))
    for name, one, other, scale in zip(NAMES, got[1], want[1], scales, strict=True):
        error = np.max(np.abs(one - other))
        assert error <= tolerance * scale, f"d{name}: off by {error / scale:.3g}"


@given(distinct("n", "d", most=12), seeds)
def test_it_is_the_symmetric_cross_entropy_of_torch_with_its_gradients(sizes, seed):
    torch = library("torch")
    _, inputs = draw(seed, {**sizes, "m": sizes["n"]})
    zimg, ztxt, t_prime = (torch.tensor(x, requires_grad=True) for x in inputs)
    logits = torch.exp(t_prime) * zimg @ ztxt.T
    index = torch.arange(sizes["n"])
    entropy = torch.nn.functional.cross_entropy
    want = (entropy(logits, index) + entropy(logits.T, index)) / 2
    want.backward()
    loss, gradients, _ = whole(inputs)
    wanted = [x.grad.numpy() for x in (zimg, ztxt, t_prime)]
    assert_same((loss, gradients), (want.item(), wanted), inputs, 1e-13)


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=PAIRS, seed=seeds)
def test_any_targets_give_the_cross_entropy_of_the_lines_that_have_a_positive(kind, sizes, seed):
    rng, inputs = draw(seed, sizes)
    labels, weights = targets(rng, sizes["n"], sizes["m"], kind)
    loss, _ = softmax_loss_fwd(*inputs, pairs=from_matrix(labels, weights))
    w = np.ones_like(labels) if weights is None else weights
    logits = np.exp(inputs[2]) * inputs[0] @ inputs[1].T
    want = 0.0
    for scores, label, weight in ((logits, labels, w), (logits.T, labels.T, w.T)):
        mass = weight * (1 + label) / 2
        for score, positive, counted in zip(scores, mass, weight, strict=True):
            if positive.sum() > 0:
                target = positive / positive.sum()
                nll = np.log(np.sum(counted * np.exp(score))) - target @ score
                want += nll / (2 * len(scores))
    assert math.isclose(loss, want, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=PAIRS, seed=seeds, tile=st.integers(1, 13))
def test_any_tile_gives_the_whole(kind, sizes, seed, tile):
    rng, inputs = draw(seed, sizes)
    pairs = from_matrix(*targets(rng, sizes["n"], sizes["m"], kind))
    for chosen in (diagonal, pairs):
        *want, _ = whole(inputs, pairs=chosen)
        got = tiled_softmax_loss(*inputs, tile=tile, pairs=chosen)
        assert_same(got, want, inputs, 1e-14)


@given(distinct("n", "d", most=12), seeds)
def test_the_order_of_the_pairs_does_not_matter(sizes, seed):
    rng, inputs = draw(seed, {**sizes, "m": sizes["n"]})
    order = rng.permutation(sizes["n"])
    *want, _ = whole(inputs)
    loss, (dzimg, dztxt, dt_prime), _ = whole((inputs[0][order], inputs[1][order], inputs[2]))
    back = np.argsort(order)
    assert_same((loss, (dzimg[back], dztxt[back], dt_prime)), want, inputs, 1e-14)


@given(PAIRS, seeds)
def test_images_and_texts_can_change_places(sizes, seed):
    rng, inputs = draw(seed, sizes)
    labels, _ = targets(rng, sizes["n"], sizes["m"], "soft")
    *want, _ = whole(inputs, pairs=from_matrix(labels))
    zimg, ztxt, t_prime = inputs
    loss, (dztxt, dzimg, dt_prime), _ = whole((ztxt, zimg, t_prime), pairs=from_matrix(labels.T))
    assert_same((loss, (dzimg, dztxt, dt_prime)), want, inputs, 1e-14)


@given(PAIRS, seeds)
def test_the_slope_of_the_temperature_is_that_of_the_images_and_of_the_texts(sizes, seed):
    _, inputs = draw(seed, sizes)
    _, (dzimg, dztxt, dt_prime), _ = whole(inputs)
    scale = math.exp(inputs[2])
    assert abs(np.sum(inputs[0] * dzimg) - dt_prime) <= 1e-14 * scale
    assert abs(np.sum(inputs[1] * dztxt) - dt_prime) <= 1e-14 * scale


@given(distinct("n", "d", most=12), seeds)
def test_the_slopes_of_the_logits_sum_to_zero_so_that_a_bias_would_have_none(sizes, seed):
    _, inputs = draw(seed, {**sizes, "m": sizes["n"]})
    _, _, dlogits = whole(inputs)
    assert abs(np.sum(dlogits)) <= 1e-15


@given(PAIRS, seeds)
def test_groups_are_their_matrix_of_signs(sizes, seed):
    rng, inputs = draw(seed, sizes)
    image_groups, text_groups = rng.integers(0, 4, sizes["n"]), rng.integers(0, 4, sizes["m"])
    signs = np.where(image_groups[:, None] == text_groups[None, :], 1.0, -1.0)
    loss, gradients, _ = whole(inputs, pairs=same_group(image_groups, text_groups))
    want_loss, want, _ = whole(inputs, pairs=from_matrix(signs))
    assert loss == want_loss
    for gradient, wanted in zip(gradients, want, strict=True):
        np.testing.assert_array_equal(gradient, wanted)


@given(PAIRS, seeds, st.integers(1, 13))
def test_what_a_masked_text_is_does_not_matter(sizes, seed, tile):
    rng, inputs = draw(seed, sizes)
    shown = rng.integers(0, 2, sizes["m"]).astype(bool)
    assume(shown.any() and not shown.all())
    labels = rng.uniform(-1, 1, (sizes["n"], sizes["m"]))
    pairs = from_matrix(labels, np.broadcast_to(shown.astype(float), labels.shape).copy())
    zimg, ztxt, t_prime = inputs
    far = (zimg, np.where(shown[:, None], ztxt, 1e3 * ztxt), t_prime)
    for loss_of in (
        lambda args: whole(args, pairs=pairs)[:2],
        lambda args: tiled_softmax_loss(*args, tile=tile, pairs=pairs),
    ):
        loss, gradients = loss_of(inputs)
        far_loss, far_gradients = loss_of(far)
        assert far_loss == loss
        assert not np.any(gradients[1][~shown])
        for gradient, wanted in zip(far_gradients, gradients, strict=True):
            np.testing.assert_array_equal(gradient, wanted)


@given(PAIRS, seeds)
def test_masking_texts_is_removing_them_but_for_their_share_of_the_mean(sizes, seed):
    rng, inputs = draw(seed, sizes)
    n, m, _ = sizes.values()
    shown = rng.integers(0, 2, m).astype(bool)
    assume(shown.any())
    labels = rng.uniform(-1, 1, (n, m))
    pairs = from_matrix(labels, np.broadcast_to(shown.astype(float), labels.shape).copy())
    masked, _ = softmax_loss_fwd(*inputs, pairs=pairs)
    zimg, ztxt, t_prime = inputs

    kept, _ = softmax_loss_fwd(zimg, ztxt[shown], t_prime, pairs=from_matrix(labels[:, shown]))
    # The mean over images is the same; the one over texts still divides by all of them.
    logits = np.exp(t_prime) * zimg @ ztxt[shown].T
    mass = (1 + labels[:, shown]) / 2
    texts = np.log(np.sum(np.exp(logits), axis=0)) - np.sum(mass * logits, axis=0) / mass.sum(
        axis=0
    )
    want = kept - texts.sum() / 2 * (1 / shown.sum() - 1 / m)
    assert math.isclose(masked, want, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_are_finite_and_right(backend, dtype, sign):
    zimg = np.asarray([[100.0, 0], [0, 100]])
    inputs = [backend.asarray(x.astype(dtype)) for x in (zimg, sign * zimg, np.asarray(0.0))]
    loss, res = backend.call(softmax_loss_fwd, *inputs)
    gradients = backend.call(softmax_loss_bwd, res, backend.asarray(np.asarray(1, dtype)))
    # Right: the match is certain. Wrong: the other text is, at a distance of 1e4.
    wrong = sign == -1
    dlogits = np.asarray([[-1.0, 1.0], [1.0, -1.0]]) / 2 * wrong
    want = (dlogits @ (sign * zimg), dlogits.T @ zimg, 1e4 * wrong)
    np.testing.assert_allclose(backend.to_numpy(loss), 1e4 * wrong, rtol=1e-7)
    for got, wanted in zip(gradients, want, strict=True):
        np.testing.assert_allclose(backend.to_numpy(got), wanted, rtol=1e-7, atol=1e-30)


GOOD = dict(zip(NAMES, pairing(np.random.default_rng(0), 3, 4, 5)[:3], strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", [softmax_loss_fwd, tiled_softmax_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zimg": np.ones((1, 3, 5))}, r"zimg must be a matrix .*got the shape \(1, 3, 5\)"),
        ({"ztxt": np.ones((0, 5))}, r"ztxt must be a matrix with at least one row.*\(0, 5\)"),
        ({"zimg": np.ones((3, 4))}, r"rows of one size, got the shapes \(3, 4\) and \(4, 5\)"),
        ({"t_prime": np.ones(1)}, r"t_prime must be a 0-d array, got the shape \(1,\)"),
        ({"t_prime": 2.3}, "t_prime must be a 0-d array, got float"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(loss, change, message):
    with pytest.raises(ValueError, match=message):
        loss(**(GOOD | change))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("tile", [0, -1, 2.0])
def test_a_tile_that_is_no_positive_integer_is_refused(tile):
    with pytest.raises(ValueError, match=f"tile must be a positive integer, got {tile!r}"):
        tiled_softmax_loss(**GOOD, tile=tile)
