"""The namespace that disturbs: it computes the same, disturbs what rounds, and leaves the rest."""

import numpy as np
import pytest

from backends import library
from siglip_ref.losses import sigmoid_loss_fwd
from siglip_spec.cases.values import Values, is_on_grid, on_grid
from siglip_spec.perturb import Disturbance
from siglip_spec.scales import measured_scale, rounded_up
from siglip_spec.suites import load_case

SIZE = 2.0**-20


def source(kind="relative", size=SIZE):
    return Disturbance(kind, size, np.random.default_rng(0))


def spread_of(function, *arrays, kind="relative"):
    """Rms deviation of a function's result in units of the disturbance, over many runs."""
    disturb = source(kind)
    truth = function(*(Disturbance(kind, 0.0, disturb.rng).asarray(x) for x in arrays)).array
    runs = [function(*(disturb.asarray(x) for x in arrays)).array - truth for _ in range(2000)]
    return np.sqrt(np.mean(np.square(runs), axis=0)) / SIZE


X = np.asarray([1.1, -0.3, 7.7])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 0.1, np.abs(X + 0.1)),
        (lambda x: 0.17 - x, np.abs(0.17 - X)),
        (lambda x: x * 3.3, np.abs(X * 3.3)),
        (lambda x: x / 3.3, np.abs(X / 3.3)),
        (lambda x: 3.7 / x, np.abs(3.7 / X)),
        (lambda x: x**3, np.abs(X**3)),
    ],
)
def test_an_operator_is_disturbed_by_one_unit_of_its_result(function, expected):
    np.testing.assert_allclose(spread_of(function, X), expected, rtol=0.1)


def test_exp_is_disturbed_by_four_units_and_sqrt_by_one():
    disturb = source()
    xp = disturb.xp
    np.testing.assert_allclose(spread_of(lambda x: xp_of(x).exp(x), X), 4 * np.exp(X), rtol=0.1)
    root = spread_of(lambda x: xp_of(x).sqrt(x), np.abs(X))
    np.testing.assert_allclose(root, np.sqrt(np.abs(X)), rtol=0.1)
    assert xp.__name__ == "disturbed"


def xp_of(x):
    return x.__array_namespace__()


def test_a_product_of_matrices_is_disturbed_by_the_root_of_its_terms():
    left, right = np.full((1, 9), 1.1), np.full((9, 1), 0.7)
    expected = 3 * np.sqrt(9 * (1.1 * 0.7) ** 2)
    np.testing.assert_allclose(spread_of(lambda a, b: a @ b, left, right), expected, rtol=0.1)


def test_a_sum_is_disturbed_by_the_root_of_its_terms():
    x = np.full(16, 1.1)
    expected = 4 * np.sqrt(16 * 1.1**2)
    np.testing.assert_allclose(spread_of(lambda x: xp_of(x).sum(x), x), expected, rtol=0.1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x: x / -4,
        lambda x: x + 0,
        lambda x: x - x,
        lambda x: -x,
        lambda x: x * 0,
        lambda x: x[1:],
        lambda x: xp_of(x).abs(x),
        lambda x: xp_of(x).reshape(x, (3, 1)),
        lambda x: xp_of(x).sum(x[:1]),
        lambda x: xp_of(x).maximum(x, x),
    ],
)
def test_what_is_exact_in_every_dtype_is_left_alone(function):
    assert not spread_of(function, X).any()


def test_integers_are_left_alone():
    indices = source().asarray(np.arange(5))
    assert (indices + 3).array.tolist() == [3, 4, 5, 6, 7]


def test_the_absolute_kind_moves_all_but_zeros_by_one_size_and_turns_no_sign():
    x = np.asarray([1.1, 0.0, -3e-9, 1e3])
    moved = spread_of(lambda x: x * 1.7, x, kind="absolute")
    assert moved[1] == 0
    np.testing.assert_allclose(moved[[0, 3]], 1, rtol=0.1)
    disturb = source("absolute")
    assert all((disturb.asarray(x) * 1.7).array[2] < 0 for _ in range(100))


def test_the_core_runs_on_it_and_computes_the_same_without_disturbance():
    values = Values("any")
    arrays = (values.unit_rows(5, 3), values.unit_rows(5, 3), np.asarray(1.5), np.asarray(-2.0))
    still = Disturbance("relative", 0.0, np.random.default_rng(0))
    loss, _ = sigmoid_loss_fwd(*(still.asarray(x) for x in arrays))
    assert loss.array == sigmoid_loss_fwd(*arrays)[0]


def test_the_scale_of_a_case_is_the_same_for_ever():
    case = load_case("loss.sigmoid/n7-d5/init-bias")
    for name, scale in measured_scale(case).items():
        assert scale.tobytes() == case.scale[name].tobytes()


def test_scales_are_rounded_up_to_four_bits():
    x = np.asarray([0.0, 1.0, 1.01, 3.9, 1e-3])
    up = rounded_up(x)
    assert up.tolist() == [0.0, 1.0, 1.125, 4.0, 0.0010986328125]
    assert (up >= x).all()


def test_the_grid_is_exact_in_every_dtype():
    x = on_grid(np.random.default_rng(0).standard_normal(1000) * 100)
    assert is_on_grid(x)
    assert not is_on_grid(x + 2.0**-20)
    for dtype in (np.float16, np.float32):
        np.testing.assert_array_equal(x.astype(dtype).astype(np.float64), x)
    bfloat16 = library("ml_dtypes").bfloat16
    np.testing.assert_array_equal(x.astype(bfloat16).astype(np.float64), x)
