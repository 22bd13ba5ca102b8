"""The kernels' arithmetic is that of their NumPy twins, and of the core.

The fixture `modules` has the compiled source once or more often: what they write must be the same.
"""

import ml_dtypes
import numpy as np
import pytest

from cupy_cases.numbers import DTYPES, UNIT, of_every_dtype
from cupy_stand_in import twins
from siglip_cupy import kernels
from siglip_ref.losses import PairTargets
from siglip_ref.losses.sigmoid import pair_nll
from siglip_ref.primitives import (
    gelu_tanh_bwd,
    gelu_tanh_fwd,
    layer_norm_bwd,
    layer_norm_fwd,
    softmax_bwd,
    softmax_fwd,
)

ULPS = 4
"""exp and log1p of two mathematics libraries part by a unit or two."""


def run(modules, name, *dtypes, grid, args, out):
    """What a kernel writes into copies of `out`; the order of the threads must not matter."""
    results = []
    for module in modules:
        written = [x.copy() for x in out]
        args_here = [written[arg.number] if isinstance(arg, Out) else arg for arg in args]
        module.get_function(kernels.instance(name, *dtypes))(grid, (kernels.BLOCK,), args_here)
        results.append(written)
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes(), "the result depends on the order of the threads"
    return results[0]


class Out:
    """Stands for the array with this number in `out`."""

    def __init__(self, number):
        self.number = number


def assert_close(got, want, unit, scale=None):
    """Within a few units of rounding of each element, or of `scale` where sums cancel."""
    assert got.shape == want.shape
    got, want = got.astype(np.float64), want.astype(np.float64)
    scale = np.abs(want) if scale is None else scale
    assert np.all(np.isfinite(got))
    worst = np.max(np.abs(got - want) / (unit * np.maximum(scale, 1e-30)))
    assert worst <= ULPS, f"off by {worst:.3g} units of rounding"


def numbers(seed, shape, dtype, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(DTYPES[dtype])


def bits_of_every_16_bit_number(dtype):
    return np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_numbers_are_read_and_rounded_as_in_numpy(modules, dtype):
    # Through gelu's gradient at 0, which is dout / 2: each of the 2^16 numbers, with a rounding.
    x = np.zeros(2**16, dtype=DTYPES[dtype])
    dout = bits_of_every_16_bit_number(dtype)
    (dx,) = run(
        modules,
        "gelu_tanh_bwd",
        dtype,
        grid=(7,),
        args=(x, dout, Out(0), x.size),
        out=[np.empty_like(x)],
    )
    with np.errstate(invalid="ignore"):
        want = (dout.astype(np.float32) * np.float32(0.5)).astype(DTYPES[dtype])
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(dx), nan)
    assert dx[~nan].tobytes() == want[~nan].tobytes()


@of_every_dtype
def test_gelu_is_its_twin_and_the_core(modules, dtype):
    x = np.concatenate([numbers(1, 700, dtype, 2.0), numbers(2, 33, dtype, 1e-3)])
    dout = numbers(3, x.shape, dtype)
    (out,) = run(modules, "gelu_tanh_fwd", dtype, grid=(2,), args=(x, Out(0), x.size), out=[x * 0])
    (dx,) = run(
        modules, "gelu_tanh_bwd", dtype, grid=(3,), args=(x, dout, Out(0), x.size), out=[x * 0]
    )
    # In the left tail the error of v is that of the output times |v|.
    wide, slope = x.astype(np.float64), dout.astype(np.float64)
    magnified = 1 + 4 * np.abs(wide) ** 3
    # In the right one 1 - s cancels, and is multiplied by x v'.
    terms = np.abs(slope) * (1 + np.abs(wide) + 0.2 * np.abs(wide) ** 3)
    assert_close(out, twins.gelu_tanh_fwd(x), magnified * UNIT[dtype])
    assert_close(out, gelu_tanh_fwd(wide)[0], magnified * UNIT[dtype])
    assert_close(dx, twins.gelu_tanh_bwd(x, dout), UNIT[dtype], terms)
    assert_close(dx, gelu_tanh_bwd(wide, slope), UNIT[dtype], terms)


@of_every_dtype
@pytest.mark.parametrize(("rows", "d", "blocks"), [(1, 1, 1), (7, 5, 1), (70, 33, 2), (19, 96, 3)])
def test_layer_norm_is_its_twin_and_the_core(modules, dtype, rows, d, blocks):
    x, dout = numbers(4, (rows, d), dtype) + DTYPES[dtype].type(3), numbers(5, (rows, d), dtype)
    scale, bias = numbers(6, d, dtype), numbers(7, d, dtype)
    eps, width = 1e-6, kernels.WIDE[dtype]
    out, normalized, inv_std = run(
        modules,
        "layer_norm_fwd",
        dtype,
        grid=(blocks,),
        args=(x, scale, bias, eps, Out(0), Out(1), Out(2), rows, d),
        out=[np.empty_like(x), np.empty_like(x), np.empty((rows, 1), dtype=width)],
    )
    (dx,) = run(
        modules,
        "layer_norm_bwd",
        dtype,
        grid=(blocks,),
        args=(normalized, inv_std, scale, dout, Out(0), rows, d),
        out=[np.empty_like(x)],
    )
    for got, twin in zip(
        (out, normalized, inv_std), twins.layer_norm_fwd(x, scale, bias, eps), strict=True
    ):
        assert_close(got, twin, UNIT[dtype], np.max(np.abs(twin.astype(np.float64))))
    twin = twins.layer_norm_bwd(normalized, inv_std, scale, dout)
    size = np.max(np.abs(twin.astype(np.float64)), initial=1e-3 * float(np.max(inv_std)))
    assert_close(dx, twin, UNIT[dtype], size)
    params = {"scale": scale.astype(np.float64), "bias": bias.astype(np.float64)}
    want, res = layer_norm_fwd(x.astype(np.float64), params, eps)
    assert_close(out, want, UNIT[dtype], np.max(np.abs(want)))
    want_dx, want_dparams = layer_norm_bwd(res, dout.astype(np.float64))
    if d > 1:  # at d = 1 it is 0 and what is computed is the rounding of 1/sqrt(eps)
        assert_close(dx, want_dx, 4 * UNIT[dtype], np.max(np.abs(want_dx)))
    chunk = 3
    chunks = -(-rows // chunk)
    columns = run(
        modules,
        "layer_norm_columns",
        dtype,
        grid=(1, chunks),
        args=(normalized, dout, Out(0), Out(1), rows, d, chunk),
        out=[np.empty((chunks, d), dtype=width) for _ in range(2)],
    )
    for got, want in zip(columns, twins.layer_norm_columns(normalized, dout, chunk), strict=True):
        np.testing.assert_array_equal(got, want)
    sums = np.sum(columns[0], axis=0), np.sum(columns[1], axis=0)
    for got, name in zip(sums, ("scale", "bias"), strict=True):
        terms = np.sum(np.abs(dout.astype(np.float64)))
        assert_close(got, want_dparams[name], UNIT[dtype], terms)


@of_every_dtype
def test_softmax_is_its_twin_and_the_core(modules, dtype):
    rows, d = 21, 45
    width = kernels.WIDE[dtype]
    scores = numbers(8, (rows, d), width.name, 5.0)
    (out,) = run(
        modules,
        "softmax_fwd",
        dtype,
        grid=(2,),
        args=(scores, Out(0), rows, d),
        out=[np.empty((rows, d), dtype=DTYPES[dtype])],
    )
    tiny = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal)
    far = np.abs(scores - np.max(scores, axis=1, keepdims=True)).astype(np.float64)
    for want in (twins.softmax_fwd(scores, DTYPES[dtype]), softmax_fwd(scores)[0]):
        error = np.abs(out.astype(np.float64) - want.astype(np.float64))
        allowed = UNIT[dtype] * (2 * ULPS + far) * want.astype(np.float64) + tiny
        assert np.all(error <= allowed)
    dout = numbers(9, (rows, d), width.name)
    (dscores,) = run(
        modules,
        "softmax_bwd",
        dtype,
        grid=(2,),
        args=(out, dout, Out(0), rows, d),
        out=[np.empty_like(out)],
    )
    for want in (twins.softmax_bwd(out, dout), softmax_bwd(out.astype(width), dout)):
        assert_close(dscores, want, UNIT[dtype], np.max(np.abs(want.astype(np.float64))))


def tile(seed, n, m, dtype):
    rng = np.random.default_rng(seed)
    cosines = np.clip(0.3 * rng.standard_normal((n, m)), -1, 1).astype(dtype)
    scalars = np.asarray(np.log(10.0), dtype=dtype), np.asarray(-10.0, dtype=dtype)
    return cosines, *scalars


@pytest.mark.parametrize(
    ("width", "rounded"),
    [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16")],
)
@pytest.mark.parametrize(("n", "m", "blocks"), [(1, 1, 1), (5, 300, 2), (9, 31, 9)])
@pytest.mark.parametrize("kind", ["indices", "labels", "weights"])
def test_a_tile_of_the_loss_is_its_twin_and_the_core(modules, width, rounded, n, m, blocks, kind):
    cosines, t_prime, b = tile(10, n, m, width)
    rows, columns = np.arange(n) + 3, np.arange(m) + 1
    labels = np.where(rows[:, None] == columns[None, :], 1, -1).astype(width)
    weights, args = None, (rows, columns)
    name = "sigmoid_tile"
    if kind != "indices":
        rng = np.random.default_rng(11)
        labels = rng.uniform(-1, 1, (n, m)).astype(width)
        weights = rng.uniform(0, 2, (n, m)).astype(width) if kind == "weights" else None
        name, args = "sigmoid_tile_targets", (labels, 0 if weights is None else weights)
    dlogits, partials = run(
        modules,
        name,
        width,
        rounded,
        grid=(blocks,),
        args=(cosines, Out(0), t_prime, b, *args, n, m, Out(1)),
        out=[np.empty((n, m), dtype=DTYPES[rounded]), np.full((blocks, 3), np.nan)],
    )
    (totals,) = run(
        modules, "add_partials", grid=(1,), args=(partials, blocks, Out(0)), out=[np.ones(3)]
    )
    twin, sums = twins.sigmoid_tile(cosines, t_prime, b, labels, weights)
    exact = np.exp(np.float64(t_prime)) * cosines.astype(np.float64) + np.float64(b)
    targets = PairTargets(labels, weights)
    nll, dnll = pair_nll(exact, targets)
    # A logit of 10 has a rounding error of its own, and the two parts of a soft label cancel.
    parts = twins.sigmoid(exact) * (1 - labels) / 2 + twins.sigmoid(-exact) * (1 + labels) / 2
    parts = (parts if weights is None else weights * parts) * (2 + np.abs(exact))
    assert_close(dlogits, twin, UNIT[rounded], parts)
    assert_close(dlogits, dnll, UNIT[rounded], parts)
    # Each thread adds a few numbers in the wide type before the sums go on in float64.
    scale = 1 + np.sum(np.abs(sums))
    assert_close(totals, 1 + sums, ULPS * UNIT[width], scale)
    want = np.asarray([np.sum(nll), np.sum(dnll * (exact - b)), np.sum(dnll)])
    assert_close(totals - 1, want, 8 * UNIT[width], scale)


def test_a_tile_may_be_overwritten_by_its_gradient(modules):
    n, m = 6, 280
    cosines, t_prime, b = tile(12, n, m, "float32")
    rows, columns = np.arange(n), np.arange(m)
    apart, in_place = (
        run(
            modules,
            "sigmoid_tile",
            "float32",
            "float32",
            grid=(2,),
            args=(first, Out(0), t_prime, b, rows, columns, n, m, Out(1)),
            out=[cosines, np.zeros((2, 3))],
        )
        for first in (cosines, Out(0))
    )
    assert apart[0].tobytes() == in_place[0].tobytes()
    assert apart[1].tobytes() == in_place[1].tobytes()


def test_the_loss_of_a_sure_pair_keeps_its_digits_and_nothing_overflows(modules):
    logits = np.asarray([[-3000.0, -80.0, -30.0, 0.0, 30.0, 80.0, 3000.0]], dtype=np.float32)
    labels = np.asarray([[-1, -1, -1, 1, 1, 1, 1]], dtype=np.float32)
    zero = np.asarray(0.0, dtype=np.float32)
    dlogits, partials = run(
        modules,
        "sigmoid_tile_targets",
        "float32",
        "float32",
        grid=(1,),
        args=(logits, Out(0), zero, zero, labels, 0, 1, 7, Out(1)),
        out=[np.empty_like(logits), np.zeros((1, 3))],
    )
    small = np.exp(-np.asarray([[3000.0, 80, 30, np.inf, 30, 80, 3000]]))
    want = np.where(labels < 0, small, -small)
    want[0, 3] = -0.5
    np.testing.assert_allclose(dlogits, want, rtol=1e-6, atol=1e-45)
    np.testing.assert_allclose(partials[0, 0], np.sum(small) + np.log(2), rtol=1e-6)


@of_every_dtype
def test_a_number_that_is_not_one_stays_visible(modules, dtype):
    x = numbers(13, (3, 40), dtype)
    x[1, 7] = np.nan
    scores = x.astype(kernels.WIDE[dtype])
    (out,) = run(
        modules,
        "softmax_fwd",
        dtype,
        grid=(1,),
        args=(scores, Out(0), 3, 40),
        out=[np.empty_like(x)],
    )
    assert np.all(np.isnan(out[1]))
    assert np.all(np.isfinite(out[[0, 2]]))
