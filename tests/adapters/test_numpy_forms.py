"""NumPy's forms in place: what the formulas of the core give, for arrays of their type only."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_numpy import ThreadedNumpyBackend
from siglip_numpy.forms import BLOCK, FORMS, HostArray
from siglip_ref.fused import formula_of, register_form
from siglip_ref.primitives import gelu_tanh_bwd, gelu_tanh_fwd
from siglip_ref.tree import flatten, tree_map
from siglip_spec import check_subject
from strategies import random_params, seeds, tower_configs
from subjects.core import CoreSubject

BACKEND = ThreadedNumpyBackend()
sizes = st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 3])


@dataclass(frozen=True)
class HostSubject(CoreSubject):
    """`siglip_ref` on the arrays of the NumPy backend."""

    def _native(self, array):
        return np.asarray(super()._native(array)).view(HostArray)


def on_host(*arrays):
    return tuple(BACKEND.asarray(x) for x in arrays)


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-15 * max(1, np.max(np.abs(want))))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_vectors_of_the_kit_are_met(dtype):
    subject = HostSubject("the NumPy backend", "numpy", "numpy", dtype)
    report = check_subject(subject, ["primitives", "image", "text", "model"])
    failed = [record for record in report.records if record.status == "failed"]
    assert report.ok, failed[:3]
    assert any(record.status == "passed" for record in report.records)


@given(sizes, seeds)
def test_gelu_and_its_gradient_are_the_formulas_whatever_the_blocks(size, seed):
    rng = np.random.default_rng(seed)
    x, dout = 4 * rng.standard_normal(size), rng.standard_normal(size)
    for array in (x, dout):
        array.flags.writeable = False
    out, res = gelu_tanh_fwd(x.view(HostArray))
    assert_near(out, formula_of(gelu_tanh_fwd)(x)[0])
    assert_near(gelu_tanh_bwd(res, dout.view(HostArray)), formula_of(gelu_tanh_bwd)(x, dout))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_keeps_its_tails(dtype):
    x = np.asarray([-200, -30, -12, -1e-30, 0, 1e-30, 12, 200, 1e5], dtype=dtype)
    with np.errstate(under="ignore"):
        got, want = gelu_tanh_fwd(x.view(HostArray))[0], formula_of(gelu_tanh_fwd)(x)[0]
        np.testing.assert_allclose(got, want, rtol=20 * np.finfo(dtype).eps, atol=1e-37)
        slopes = gelu_tanh_bwd(x.view(HostArray), np.ones_like(x).view(HostArray))
        wanted = formula_of(gelu_tanh_bwd)(x, np.ones_like(x))
        np.testing.assert_allclose(slopes, wanted, rtol=200 * np.finfo(dtype).eps, atol=1e-34)


def test_a_whole_step_of_the_backend_takes_every_form_and_a_plain_one_none():
    taken = []
    for operation, form in FORMS.items():
        register_form(operation, HostArray, counting(taken, form))
    config = tower_configs()
    rng = np.random.default_rng(0)
    params = random_params(config, rng)
    size, length = config.image.image_size, config.text.context_length
    images, tokens = rng.uniform(-1, 1, (3, size, size, 3)), rng.integers(0, 11, (3, length))
    try:
        want = sr.loss_and_grads(params, images, tokens, config)
        assert taken == []
        hosted = tree_map(BACKEND.asarray, params)
        loss, grads = sr.loss_and_grads(hosted, *on_host(images, tokens), config)
    finally:
        for operation, form in FORMS.items():
            register_form(operation, HostArray, form)
    assert set(taken) == {form.__name__ for form in FORMS.values()}
    assert abs(loss - want[0]) <= 1e-14 * want[0]
    for path, leaf in flatten(want[1]).items():
        np.testing.assert_allclose(flatten(grads)[path], leaf, rtol=0, atol=1e-13, err_msg=path)


def counting(taken, form):
    def counted(*args):
        taken.append(form.__name__)
        return form(*args)

    return counted
