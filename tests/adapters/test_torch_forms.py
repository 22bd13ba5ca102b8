"""Torch's own kernels in the core: what the formulas give, where nobody follows a computation."""

import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from backends import library
from siglip_ref.fused import formula_of, register_form
from siglip_ref.tree import flatten, tree_map
from siglip_spec import check_subject
from strategies import random_params, seeds, tower_configs
from subjects.core import CoreSubject

torch = library("torch")

from siglip_ref.encoders.mlp import MlpResiduals, mlp_bwd, mlp_fwd  # noqa: E402
from siglip_ref.primitives import (  # noqa: E402
    dense_fwd,
    dot_product_attention_bwd,
    dot_product_attention_fwd,
    embed_bwd,
    embed_fwd,
    gelu_tanh_bwd,
    layer_norm_bwd,
    layer_norm_fwd,
)
from siglip_ref.primitives.dense import DenseResiduals  # noqa: E402
from siglip_ref.primitives.gelu_tanh import gelu_tanh  # noqa: E402
from siglip_torch import TorchBackend  # noqa: E402
from siglip_torch.forms import BLOCK, FORMS, register_forms  # noqa: E402

BACKEND = TorchBackend()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
lengths = st.integers(1, 9)


def random(seed, *shapes, dtype=torch.float64, scale=1.0):
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(scale * rng.standard_normal(s)).to(dtype) for s in shapes)


def assert_near(got, want, bound=8):
    """Within so many roundings of the largest number, and of the dtype and shape wanted."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    scale = max(1.0, float(want.double().abs().max()))
    atol = bound * torch.finfo(want.dtype).eps * scale
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def registered():
    register_forms()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_vectors_of_the_kit_are_met(dtype):
    subject = CoreSubject("the Torch backend", "torch", "torch", dtype)
    report = check_subject(subject, ["primitives", "image", "text", "model", "accuracy"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    assert any(record.status == "passed" for record in report.records)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seeds, lengths, lengths, lengths)
def test_dense_is_the_formula(dtype, seed, n, d_in, d_out):
    x, kernel, bias = random(seed, (2, n, d_in), (d_in, d_out), (d_out,), dtype=dtype)
    params = {"kernel": kernel, "bias": bias}
    assert_near(dense_fwd(x, params)[0], formula_of(dense_fwd)(x, params)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@given(seeds, lengths, st.integers(2, 9))
def test_layer_norm_and_its_gradients_are_the_formulas(dtype, seed, n, d):
    x, scale, bias, dout = random(seed, (2, n, d), (d,), (d,), (2, n, d), dtype=dtype)
    params = {"scale": scale, "bias": bias}
    out, res = layer_norm_fwd(x, params, 1e-1)
    want, formula_res = formula_of(layer_norm_fwd)(x, params, 1e-1)
    assert_near(out, want, 16)
    dx, dparams = layer_norm_bwd(res, dout)
    wanted_dx, wanted_dparams = formula_of(layer_norm_bwd)(formula_res, dout)
    assert_near(dx, wanted_dx, 64)
    for name in ("scale", "bias"):
        assert_near(dparams[name], wanted_dparams[name], 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 3])
def test_gelu_and_its_slope_are_the_formulas_whatever_the_blocks(dtype, size):
    (x,) = random(size, (size,), dtype=dtype, scale=4.0)
    function, slope = function_and_slope(x)
    assert_near(function, formula_of(gelu_tanh)(x))
    # 1 - s loses digits where s is near 1, in the formula and in the form.
    assert_near(slope, formula_of(gelu_tanh_bwd)(x, torch.ones_like(x)), 32)
    assert_near(gelu_tanh(x), function, 0)


def function_and_slope(x):
    """GELU and its derivative, as the gradients of a perceptron with one input and output."""
    one = x.new_ones((1, 1))
    dense_0 = DenseResiduals(one, {"kernel": torch.ones_like(x)[None], "bias": x})
    dense_1 = {"kernel": torch.ones_like(x)[:, None], "bias": one[0]}
    _, gradients = mlp_bwd(MlpResiduals(dense_0, x[None], dense_1), one)
    return gradients["dense_1"]["kernel"][:, 0], gradients["dense_0"]["bias"]


@pytest.mark.parametrize("dtype", DTYPES)
@given(seeds, lengths, lengths, lengths)
def test_the_gradients_of_the_perceptron_are_the_formulas(dtype, seed, n, d, f):
    x, dout, *arrays = random(
        seed, (2, n, d), (2, n, d), (d, f), (f,), (f, d), (d,), dtype=dtype, scale=0.5
    )
    params = {
        name: {"kernel": arrays[k], "bias": arrays[k + 1]}
        for name, k in (("dense_0", 0), ("dense_1", 2))
    }
    _, res = mlp_fwd(x, params)
    dx, got = mlp_bwd(res, dout)
    wanted_dx, want = formula_of(mlp_bwd)(res, dout)
    assert_near(dx, wanted_dx, 64)
    for name in params:
        for leaf in ("kernel", "bias"):
            assert_near(got[name][leaf], want[name][leaf], 64)


def test_gelu_takes_arrays_in_another_order():
    (x,) = (a.permute(2, 0, 1) for a in random(0, (3, 4, 5)))
    assert_near(gelu_tanh(x), formula_of(gelu_tanh)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_keeps_its_tails(dtype):
    x = torch.tensor([-200, -30, -12, -5.3, -1e-30, 0, 1e-30, 12, 200, 1e5], dtype=dtype)
    eps = torch.finfo(dtype).eps
    function, slope = function_and_slope(x)
    # The formula stops at the smallest exponential, e / max, where the form goes on to 0.
    end = 200 * math.e / torch.finfo(dtype).max
    want = formula_of(gelu_tanh)(x)
    # At x = -12 the exponent is -143, and its rounding 143 times that of the exponential.
    torch.testing.assert_close(function, want, rtol=2 * 143 * eps, atol=1.1 * end)
    wanted = formula_of(gelu_tanh_bwd)(x, torch.ones_like(x))
    steepest = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * 200**2)
    torch.testing.assert_close(slope, wanted, rtol=200 * eps, atol=1.1 * end * steepest)


@given(seeds, lengths, lengths)
def test_the_gradient_of_the_token_table_is_the_formula(seed, n, v):
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, v, (n, 5)))
    table, dout = random(seed, (v, 3), (n, 5, 3))
    res = embed_fwd(tokens, table)[1]
    assert_near(embed_bwd(res, dout), formula_of(embed_bwd)(res, dout))


@pytest.mark.parametrize("dtype", DTYPES)
@given(seeds, lengths, lengths, lengths)
def test_attention_and_its_gradients_are_the_formulas(dtype, seed, n_query, n_key, d):
    shapes = (2, 3, n_query, d), (2, 3, n_key, d), (2, 3, n_key, d), (2, 3, n_query, d)
    query, key, value, dout = random(seed, *shapes, dtype=dtype)
    out, res = dot_product_attention_fwd(query, key, value)
    want, formula_res = formula_of(dot_product_attention_fwd)(query, key, value)
    assert_near(out, want)
    found = dot_product_attention_bwd(res, dout)
    wanted = formula_of(dot_product_attention_bwd)(formula_res, dout)
    for got, gradient in zip(found, wanted, strict=True):
        assert_near(got, gradient, 32)


def test_attention_takes_heads_that_lie_between_the_tokens():
    arrays = tuple(a.permute(0, 2, 1, 3) for a in random(0, *4 * [(2, 5, 3, 4)]))
    out, res = dot_product_attention_fwd(*arrays[:3])
    want, formula_res = formula_of(dot_product_attention_fwd)(*arrays[:3])
    assert_near(out, want)
    found = dot_product_attention_bwd(res, arrays[3])
    wanted = formula_of(dot_product_attention_bwd)(formula_res, arrays[3])
    for got, gradient in zip(found, wanted, strict=True):
        assert_near(got, gradient)


@dataclass
class Step:
    """A small model's parameters and batch on the backend."""

    config = tower_configs()

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.params = random_params(self.config, rng)
        size, length = self.config.image.image_size, self.config.text.context_length
        self.images = rng.uniform(-1, 1, (3, size, size, 3))
        self.tokens = rng.integers(0, 11, (3, length))

    def on_torch(self):
        arrays = (self.params, self.images, self.tokens)
        return (*(tree_map(BACKEND.asarray, a) for a in arrays), self.config)


@pytest.fixture
def taken():
    """The names of the forms that ran."""
    names = []

    def counting(form):
        def counted(*args):
            names.append(form.__name__)
            return form(*args)

        return counted

    for operation, form in FORMS.items():
        register_form(operation, torch.Tensor, counting(form))
    yield names
    for operation, form in FORMS.items():
        register_form(operation, torch.Tensor, form)


def test_a_whole_step_takes_every_form_and_gives_numpys_gradients(taken):
    step = Step()
    want, wanted = sr.loss_and_grads(step.params, step.images, step.tokens, step.config)
    assert taken == []
    loss, grads = sr.loss_and_grads(*step.on_torch())
    assert set(taken) == {form.__name__ for form in FORMS.values()}
    assert abs(float(loss) - want) <= 1e-14 * want
    for path, leaf in flatten(wanted).items():
        np.testing.assert_allclose(flatten(grads)[path], leaf, rtol=0, atol=1e-13, err_msg=path)


def test_a_step_writes_to_none_of_its_inputs():
    given_arrays = Step().on_torch()
    before = tree_map(torch.clone, given_arrays[0]), *map(torch.clone, given_arrays[1:3])
    sr.loss_and_grads(*given_arrays)
    torch.testing.assert_close(flatten(given_arrays[0]), flatten(before[0]), rtol=0, atol=0)
    torch.testing.assert_close(given_arrays[1:3], before[1:], rtol=0, atol=0)


def test_autograd_follows_the_formulas_to_the_analytic_gradient():
    params, images, tokens, config = Step().on_torch()
    leaves = flatten(params)
    for leaf in leaves.values():
        leaf.requires_grad_()
    zimg, ztxt = sr.encode_image(params, images, config), sr.encode_text(params, tokens, config)
    loss, _ = sr.losses.sigmoid_loss_fwd(zimg, ztxt, params["t_prime"], params["b"])
    followed = torch.autograd.grad(loss, list(leaves.values()))
    with torch.no_grad():
        _, grads = sr.loss_and_grads(params, images, tokens, config)
    for got, (path, want) in zip(followed, flatten(grads).items(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12, msg=path)


def test_a_compiled_function_keeps_the_formulas():
    # In a process of its own: the checks of shapes in the tests cannot be compiled.
    program = """if True:
        import torch
        from siglip_ref.primitives.gelu_tanh import gelu_tanh
        from siglip_torch import TorchBackend

        TorchBackend()
        x = torch.linspace(-3, 3, 20, dtype=torch.float64)
        compiled = torch.compile(gelu_tanh, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), gelu_tanh(x), rtol=0, atol=1e-14)
        print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graph")
    """
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("1 graph\n", 0), run.stderr


def test_mixed_precisions_and_empty_arrays_keep_the_formulas():
    x, scale, bias = random(0, (3, 4), (4,), (4,), dtype=torch.float32)
    params = {"scale": scale, "bias": bias}
    want = formula_of(layer_norm_fwd)(x.bfloat16(), params, 1e-6)[0]
    torch.testing.assert_close(layer_norm_fwd(x.bfloat16(), params, 1e-6)[0], want, rtol=0, atol=0)
    assert layer_norm_fwd(x[:0], params, 1e-6)[0].shape == (0, 4)
    assert gelu_tanh(x[:0]).shape == (0, 4)
